"""ATTACKS: every attack by name. A new one is a builder and a row here; flags, suites, tests and reports follow."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from art.attacks.attack import EvasionAttack

from dgad_tk import number_text
from dgad_tk.common import UserError, nearest
from evaluators.attacks.arts import ART_ATTACKS, art_attack
from evaluators.attacks.autoattack.apgd import APGD
from evaluators.attacks.autoattack.dlr import DLR_CLASSES, TARGETED_DLR_CLASSES
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.autoattack.fab import FAB
from evaluators.attacks.autoattack.reference import AuthorsAutoAttack
from evaluators.attacks.autoattack.square import Square
from evaluators.attacks.autoattack.stages import SQUARE_SIDE, TARGETS
from evaluators.attacks.cw2 import CarliniWagnerL2
from evaluators.attacks.jsma import SaliencyMap
from evaluators.attacks.pgd import ProjectedGradient
from evaluators.ball import Norm
from evaluators.estimators import PredictorBlackBox, PredictorClassifier

Kind = Literal["budget", "min-norm"]
Estimator = PredictorClassifier | PredictorBlackBox
TRUE_LABELS = "true labels, moved away from"
SLOW_SAMPLES = 50
"""Images that ART's attacks without gradients are tried on: thousands of questions each, one image at a time."""


@dataclass(frozen=True)
class Budget:
    """What every attack is told: the ball it is judged in, the seed of its draws, how many images fit at once."""

    norm: Norm
    eps: float
    seed: int
    batch_size: int


Build = Callable[[Estimator, Budget, Mapping[str, Any]], EvasionAttack]
Passes = Callable[[Mapping[str, Any], int], tuple[int, int]]
"""Parameters and the number of classes to what an image costs that nothing breaks: forward passes alone, and forward
passes with the backward pass of their gradient."""


@dataclass(frozen=True)
class AttackSpec:
    """A row of ATTACKS.

    Attributes:
        kind: `budget` answers inside an eps-ball; `min-norm` looks for the nearest adversarial image and reports
            success and distance.
        norms: it can be judged in; a min-norm attack minimises the first.
        build: the ART attack for an estimator.
        passes: what an image costs at most; None where nobody knows beforehand.
        y_means: what the labels given to it mean: they are the true ones here.
        description: one line for `dgad list attacks`.
        params: defaults that a user may change (`--set NAME.key=value`), as they are written into the results. One
            called `samples` cuts the row to so many images.
        choices: what a parameter that is a word may be.
        indexed: its `generate` takes the dataset indices that its draws belong to.
        searches: it looks around inside the ball, so that what it breaks at one radius it has broken at larger ones. A
            single step of full size does not.
        foreign: another library's code runs. What that raises is no bug of ours: its row fails, and the others go on.
        note: a caution printed with its row.
    """

    kind: Kind
    norms: tuple[Norm, ...]
    build: Build
    passes: Passes | None
    description: str
    y_means: str = TRUE_LABELS
    params: Mapping[str, int | float | str] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs_gradients: bool = True
    indexed: bool = True
    searches: bool = True
    foreign: bool = False
    note: str = ""

    def parameters(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults with `changes`, of which a text is read as a value of the default's type.

        Raises:
            UserError: an unknown parameter, or a value of another type.
        """
        found = dict(self.params)
        for key, value in changes.items():
            if key not in self.params:
                raise UserError(f"attack '{name}' has no parameter '{key}'", hint=nearest(key, self.params))
            default = self.params[key]
            if isinstance(default, str):
                if value not in self.choices[key]:
                    expected = ", ".join(self.choices[key])
                    raise UserError(
                        f"{name}.{key} must be one of {expected}, got {value!r}", hint=f"the default is {default}"
                    )
                found[key] = value
                continue
            # A count is at least 1; a real number may be 0, as Carlini & Wagner's confidence often is.
            whole = isinstance(default, int)
            expected = "a whole number of at least 1" if whole else "a number of at least 0"
            number = _read(value, whole=whole)
            if number is None or not (1 if whole else 0) <= number < math.inf:
                raise UserError(f"{name}.{key} must be {expected}, got {value!r}", hint=f"the default is {default}")
            found[key] = number
        return found


def _read(value: Any, *, whole: bool) -> int | float | None:
    """A parameter as a number, None where it is none. Text is what stands behind `--set NAME.key=`."""
    if isinstance(value, str):
        try:
            return number_text.whole(value) if whole else number_text.real(value)
        except number_text.NotANumberError:
            return None
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    return value if number else None


def _common(budget: Budget) -> dict[str, Any]:
    return {"norm": budget.norm, "eps": budget.eps, "seed": budget.seed, "batch_size": budget.batch_size}


def _fgsm(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    return ProjectedGradient(estimator, step_size=budget.eps, steps=1, init="none", **_common(budget))


def _pgd(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    step_size = budget.eps * params["relative_step"]
    own = {key: params[key] for key in ("steps", "restarts", "loss")}
    return ProjectedGradient(estimator, step_size=step_size, **own, **_common(budget))


def _mim(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    step_size = budget.eps * params["relative_step"]
    own = {key: params[key] for key in ("steps", "momentum", "loss")}
    return ProjectedGradient(estimator, step_size=step_size, init="none", **own, **_common(budget))


def _apgd(
    estimator: Estimator, budget: Budget, params: Mapping[str, Any], *, loss: Literal["ce", "dlr"], targets: int
) -> EvasionAttack:
    least = TARGETED_DLR_CLASSES if targets else DLR_CLASSES if loss == "dlr" else 2
    if estimator.nb_classes < least:
        raise UserError(
            f"'{'apgd-t' if targets else 'apgd-dlr'}' needs at least {least} classes, the model has "
            f"{estimator.nb_classes}",
            hint="apgd-ce needs two; autoattack replaces the stages that it cannot have",
        )
    return APGD(estimator, loss=loss, targets=targets, **params, **_common(budget))


def _fab(estimator: Estimator, budget: Budget, params: Mapping[str, Any], *, targets: int) -> EvasionAttack:
    return FAB(estimator, targets=targets, **params, **_common(budget))


def _square(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    side = min(estimator.input_shape[1:])
    if budget.norm != "linf" and side < SQUARE_SIDE:
        raise UserError(
            f"'square' in {budget.norm} needs images of at least {SQUARE_SIDE} pixels a side, these have {side}",
            hint="leave it out, or take --norm linf",
        )
    return Square(estimator, accept_equal=estimator.predictor.precision == "int8", **params, **_common(budget))


def _autoattack(
    estimator: Estimator, budget: Budget, params: Mapping[str, Any], *, version: Literal["standard", "plus", "rand"]
) -> EvasionAttack:
    return AutoAttack(estimator, version=version, **_common(budget))


def _reference(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    return AuthorsAutoAttack(estimator, **_common(budget))


def _cw2(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    return CarliniWagnerL2(estimator, seed=budget.seed, batch_size=budget.batch_size, **params)


def _jsma(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    return SaliencyMap(estimator, seed=budget.seed, batch_size=budget.batch_size, **params)


def _arts_own(name: str, estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    own = {key: value for key, value in params.items() if key != "samples"}
    return art_attack(name, estimator, params=own, **_common(budget))


def _standard_passes(params: Mapping[str, Any], classes: int) -> tuple[int, int]:
    targets = min(TARGETS, classes - 1)
    return 100 * targets + 5000, 100 + 200 * targets


ALL_NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
LOSSES = ("ce", "dlr", "cw", "kl")

ATTACKS: dict[str, AttackSpec] = {
    "fgsm": AttackSpec(
        kind="budget",
        norms=("linf", "l2"),
        build=_fgsm,
        passes=lambda params, classes: (0, 1),
        description="one step of size eps, no random start (Goodfellow et al., 2015)",
        searches=False,
    ),
    "pgd": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_pgd,
        passes=lambda params, classes: (params["restarts"] - 1, params["steps"] * params["restarts"]),
        description="10 steps of eps/4 on the cross-entropy from a uniform start (Madry et al., 2018)",
        params={"steps": 10, "relative_step": 0.25, "restarts": 1, "loss": "ce"},
        choices={"loss": LOSSES},
    ),
    "mim": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_mim,
        passes=lambda params, classes: (0, params["steps"]),
        description="10 steps of eps/10 with momentum 1, made to transfer (Dong et al., 2018)",
        params={"steps": 10, "relative_step": 0.1, "momentum": 1.0, "loss": "ce"},
        choices={"loss": LOSSES},
    ),
    "cw2": AttackSpec(
        kind="min-norm",
        norms=("l2",),
        build=_cw2,
        passes=lambda params, classes: (0, params["binary_search_steps"] * params["max_iter"]),
        description="Carlini & Wagner (2017): nine search steps of 200 iterations, early abort; unbounded L2",
        params={
            "initial_const": 0.1,
            "binary_search_steps": 9,
            "max_iter": 200,
            "learning_rate": 0.01,
            "confidence": 0.0,
        },
    ),
    "cw2-paper": AttackSpec(
        kind="min-norm",
        norms=("l2",),
        build=_cw2,
        passes=lambda params, classes: (0, params["binary_search_steps"] * params["max_iter"]),
        description="Carlini & Wagner as the DGAD paper ran it: c = 0.1, one search step, 1,000 iterations",
        params={
            "initial_const": 0.1,
            "binary_search_steps": 1,
            "max_iter": 1000,
            "learning_rate": 0.01,
            "confidence": 0.01,
        },
        note="one fixed c and no eps-ball: where this search fails that is no robustness",
    ),
    "autoattack": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=partial(_autoattack, version="standard"),
        passes=_standard_passes,
        description="the standard ensemble: APGD-CE, APGD-T, FAB-T, Square (Croce & Hein, 2020)",
    ),
    "autoattack-plus": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=partial(_autoattack, version="plus"),
        passes=lambda params, classes: (
            5000 + 500 + 100 * min(TARGETS, classes - 1),
            1000 + 500 * (classes + 1) + 200 * min(TARGETS, classes - 1),
        ),
        description="AutoAttack with untargeted DLR and FAB and five restarts",
    ),
    "autoattack-rand": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=partial(_autoattack, version="rand"),
        passes=lambda params, classes: (0, 4000),
        description="AutoAttack for models that answer at random: gradients averaged over 20 passes",
    ),
    "autoattack-reference": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_reference,
        passes=_standard_passes,
        description="the standard ensemble by its authors' package pyautoattack (an extra), for comparison",
        indexed=False,
        foreign=True,
    ),
    "apgd-ce": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=partial(_apgd, loss="ce", targets=0),
        passes=lambda params, classes: (0, params["steps"] * params["restarts"]),
        description="PGD that sets its own step size, on the cross-entropy (Croce & Hein, 2020)",
        params={"steps": 100, "restarts": 1},
    ),
    "apgd-dlr": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=partial(_apgd, loss="dlr", targets=0),
        passes=lambda params, classes: (0, params["steps"] * params["restarts"]),
        description="the same on the difference of logits ratio",
        params={"steps": 100, "restarts": 1},
    ),
    "apgd-t": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=partial(_apgd, loss="dlr", targets=TARGETS),
        passes=lambda params, classes: (0, params["steps"] * params["restarts"] * min(TARGETS, classes - 1)),
        description="the same towards each of the nine likeliest other classes",
        params={"steps": 100, "restarts": 1},
    ),
    "fab": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=partial(_fab, targets=0),
        passes=lambda params, classes: (
            params["steps"] * params["restarts"],
            params["steps"] * params["restarts"] * classes,
        ),
        description="steps onto the nearest linearised boundary (Croce & Hein, 2020)",
        params={"steps": 100, "restarts": 1},
    ),
    "fab-t": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=partial(_fab, targets=TARGETS),
        passes=lambda params, classes: 2 * (params["steps"] * params["restarts"] * min(TARGETS, classes - 1),),
        description="the same towards each of the nine likeliest other classes",
        params={"steps": 100, "restarts": 1},
    ),
    "square": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_square,
        passes=lambda params, classes: (params["queries"], 0),
        description="random search on the runtime's answers alone, 5,000 queries (Andriushchenko et al., 2020)",
        params={"queries": 5000},
        needs_gradients=False,
    ),
    "jsma": AttackSpec(
        kind="min-norm",
        norms=("l2",),
        build=_jsma,
        passes=None,
        y_means="true labels; the target is the likeliest other class",
        description="pairs of pixels by saliency (Papernot et al., 2016) towards the runner-up class; few pixels",
        params={"theta": 1.0, "gamma": 0.1},
    ),
    **{
        f"art:{name}": AttackSpec(
            kind=row.kind,
            norms=row.norms,
            build=partial(_arts_own, name),
            passes=None,
            y_means=row.y_means,
            description=row.description,
            params={**row.params, **({} if row.needs_gradients else {"samples": SLOW_SAMPLES})},
            needs_gradients=row.needs_gradients,
            indexed=False,
            foreign=True,
            note=row.note,
        )
        for name, row in ART_ATTACKS.items()
    },
}
