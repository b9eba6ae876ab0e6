"""ATTACKS: every attack by name. A new one is a builder and a row here; flags, suites, tests and reports follow."""

from collections.abc import Callable, Mapping
from typing import Any

from dgad_tk.common import UserError
from evaluators.attacks.art.table import ART_ATTACKS
from evaluators.attacks.autoattack.apgd.apgd import APGD
from evaluators.attacks.autoattack.dlr import DLR_CLASSES, TARGETED_DLR_CLASSES
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.autoattack.fab.fab import FAB
from evaluators.attacks.autoattack.square.square import Square
from evaluators.attacks.autoattack.stages import SQUARE_SIDE, TARGETS
from evaluators.attacks.cw2 import CarliniWagnerL2
from evaluators.attacks.jsma import SaliencyMap
from evaluators.attacks.pgd import ProjectedGradient
from evaluators.attacks.result import SearchingAttack
from evaluators.attacks.spec import AttackSpec, Budget, Build, Estimator
from evaluators.target.ball import Norm


def _own(cls: Callable[..., SearchingAttack], **fixed: Any) -> Build:
    """Builds one of our attacks; the row's parameters are its own."""
    return lambda estimator, budget, params: cls(estimator, **fixed, **params, **vars(budget))


def _nearest(cls: Callable[..., SearchingAttack]) -> Build:
    """The same for an attack that knows no ball and draws nothing."""
    return lambda estimator, budget, params: cls(estimator, batch_size=budget.batch_size, **params)


def _fgsm(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> SearchingAttack:
    return ProjectedGradient(estimator, step_size=budget.eps, steps=1, init="none", **vars(budget))


def _pgd(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> SearchingAttack:
    step_size = budget.eps * params["relative_step"]
    own = {key: params[key] for key in ("steps", "restarts", "loss")}
    return ProjectedGradient(estimator, step_size=step_size, **own, **vars(budget))


def _mim(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> SearchingAttack:
    step_size = budget.eps * params["relative_step"]
    own = {key: params[key] for key in ("steps", "momentum", "loss")}
    return ProjectedGradient(estimator, step_size=step_size, init="none", **own, **vars(budget))


def _square(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> SearchingAttack:
    side = min(estimator.input_shape[1:])
    if budget.norm != "linf" and side < SQUARE_SIDE:
        raise UserError(
            f"'square' in {budget.norm} needs images of at least {SQUARE_SIDE} pixels a side, these have {side}",
            hint="leave it out, or take --norm linf",
        )
    return Square(estimator, **params, **vars(budget))


ALL_NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
LOSSES = ("ce", "dlr", "cw", "kl")

ATTACKS: dict[str, AttackSpec] = {
    "fgsm": AttackSpec(
        kind="budget",
        norms=("linf", "l2"),
        build=_fgsm,
        description="one step of size eps, no random start (Goodfellow et al., 2015)",
        searches=False,
    ),
    "pgd": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_pgd,
        description="10 steps of eps/4 on the cross-entropy from a uniform start (Madry et al., 2018)",
        params={"steps": 10, "relative_step": 0.25, "restarts": 1, "loss": "ce"},
        choices={"loss": LOSSES},
    ),
    "mim": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_mim,
        description="10 steps of eps/10 with momentum 1, made to transfer (Dong et al., 2018)",
        params={"steps": 10, "relative_step": 0.1, "momentum": 1.0, "loss": "ce"},
        choices={"loss": LOSSES},
    ),
    "cw2": AttackSpec(
        kind="min-norm",
        norms=("l2",),
        build=_nearest(CarliniWagnerL2),
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
        build=_nearest(CarliniWagnerL2),
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
        build=_own(AutoAttack, version="standard"),
        description="the standard ensemble: APGD-CE, APGD-T, FAB-T, Square (Croce & Hein, 2020)",
    ),
    "autoattack-plus": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_own(AutoAttack, version="plus"),
        description="AutoAttack with untargeted DLR and FAB and five restarts",
    ),
    "autoattack-rand": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_own(AutoAttack, version="rand"),
        description="AutoAttack for models that answer at random: gradients averaged over 20 passes",
    ),
    "apgd-ce": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_own(APGD, loss="ce"),
        description="PGD that sets its own step size, on the cross-entropy (Croce & Hein, 2020)",
        params={"steps": 100, "restarts": 1},
    ),
    "apgd-dlr": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_own(APGD, loss="dlr"),
        fewest_classes=DLR_CLASSES,
        description="the same on the difference of logits ratio",
        params={"steps": 100, "restarts": 1},
    ),
    "apgd-t": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_own(APGD, targets=TARGETS),
        fewest_classes=TARGETED_DLR_CLASSES,
        description="the same towards each of the nine likeliest other classes",
        params={"steps": 100, "restarts": 1},
    ),
    "fab": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_own(FAB),
        description="steps onto the nearest linearised boundary (Croce & Hein, 2020)",
        params={"steps": 100, "restarts": 1},
    ),
    "fab-t": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_own(FAB, targets=TARGETS),
        description="the same towards each of the nine likeliest other classes",
        params={"steps": 100, "restarts": 1},
    ),
    "square": AttackSpec(
        kind="budget",
        norms=ALL_NORMS,
        build=_square,
        description="random search on the runtime's answers alone, 5,000 queries (Andriushchenko et al., 2020)",
        params={"queries": 5000},
        needs_gradients=False,
    ),
    "jsma": AttackSpec(
        kind="min-norm",
        norms=("l2",),
        build=_nearest(SaliencyMap),
        description="pairs of pixels by saliency (Papernot et al., 2016) towards the runner-up class; few pixels",
        params={"theta": 1.0, "gamma": 0.1},
    ),
    **{f"art:{name}": row for name, row in ART_ATTACKS.items()},
}
