"""ATTACKS: every attack by name. A new one is a builder and a row here; flags, suites, tests and reports follow."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from art.attacks.attack import EvasionAttack
from art.attacks.evasion import CarliniL2Method

from dgad_tk.common import UserError, nearest
from evaluators.attacks.autoattack.reference import AuthorsAutoAttack
from evaluators.attacks.pgd import ProjectedGradient
from evaluators.attacks.square import AuthorsSquare
from evaluators.ball import Norm
from evaluators.estimators import PredictorClassifier

Kind = Literal["budget", "min-norm"]


@dataclass(frozen=True)
class Budget:
    """What every attack is told: the ball it is judged in, the seed of its draws, how many images fit at once."""

    norm: Norm
    eps: float
    seed: int
    batch_size: int


Build = Callable[[PredictorClassifier, Budget, Mapping[str, Any]], EvasionAttack]


@dataclass(frozen=True)
class AttackSpec:
    """A row of ATTACKS.

    Attributes:
        kind: `budget` answers inside an eps-ball; `min-norm` looks for the nearest adversarial image and reports
            success and distance.
        norms: it can be judged in; a min-norm attack minimises the first.
        build: the ART attack for an estimator.
        y_means: what the labels given to it mean: they are the true ones here.
        description: one line for `dgad list attacks`.
        params: defaults that a user may change (`--set NAME.key=value`), as they are written into the results.
        indexed: its `generate` takes the dataset indices that its draws belong to.
        note: a caution printed with its row.
    """

    kind: Kind
    norms: tuple[Norm, ...]
    build: Build
    y_means: str
    description: str
    params: Mapping[str, int | float] = field(default_factory=dict)
    needs_gradients: bool = True
    indexed: bool = False
    note: str = ""

    def parameters(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults with `changes`.

        Raises:
            UserError: an unknown parameter, or a value of another type.
        """
        for key, value in changes.items():
            if key not in self.params:
                raise UserError(f"attack '{name}' has no parameter '{key}'", hint=nearest(key, self.params))
            default = self.params[key]
            # A count is at least 1; a real number may be 0, as Carlini & Wagner's confidence often is.
            whole = isinstance(default, int)
            number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not number or not (1 if whole else 0) <= value < math.inf:
                expected = "a whole number of at least 1" if whole else "a number of at least 0"
                raise UserError(f"{name}.{key} must be {expected}, got {value!r}", hint=f"the default is {default}")
        return {**self.params, **changes}


def _fgsm(estimator: PredictorClassifier, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    return ProjectedGradient(
        estimator,
        norm=budget.norm,
        eps=budget.eps,
        step_size=budget.eps,
        steps=1,
        init="none",
        batch_size=budget.batch_size,
    )


def _pgd(estimator: PredictorClassifier, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    return ProjectedGradient(
        estimator,
        norm=budget.norm,
        eps=budget.eps,
        step_size=budget.eps * params["relative_step"],
        steps=params["steps"],
        restarts=params["restarts"],
        seed=budget.seed,
        batch_size=budget.batch_size,
    )


def _cw2(estimator: PredictorClassifier, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    return CarliniL2Method(estimator, batch_size=128, verbose=False, **params)


def _autoattack(estimator: PredictorClassifier, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    return AuthorsAutoAttack(
        estimator, norm=budget.norm, eps=budget.eps, seed=budget.seed, batch_size=budget.batch_size
    )


def _square(estimator: PredictorClassifier, budget: Budget, params: Mapping[str, Any]) -> EvasionAttack:
    return AuthorsSquare(
        estimator,
        norm=budget.norm,
        eps=budget.eps,
        queries=params["queries"],
        seed=budget.seed,
        batch_size=budget.batch_size,
    )


ATTACKS: dict[str, AttackSpec] = {
    "fgsm": AttackSpec(
        kind="budget",
        norms=("linf", "l2"),
        build=_fgsm,
        y_means="true labels, moved away from",
        description="one step of size eps, no random start (Goodfellow et al., 2015)",
        indexed=True,
    ),
    "pgd": AttackSpec(
        kind="budget",
        norms=("linf", "l2"),
        build=_pgd,
        y_means="true labels, moved away from",
        description="10 steps of eps/4 on the cross-entropy from a uniform start (Madry et al., 2018)",
        params={"steps": 10, "relative_step": 0.25, "restarts": 1},
        indexed=True,
    ),
    "cw2": AttackSpec(
        kind="min-norm",
        norms=("l2", "linf"),
        build=_cw2,
        y_means="true labels, moved away from",
        description="Carlini & Wagner (2017) by ART: one search step, 100 iterations; unbounded L2",
        params={
            "initial_const": 0.1,
            "binary_search_steps": 1,
            "max_iter": 100,
            "learning_rate": 0.01,
            "confidence": 0.01,
        },
        note="ART's, unbounded L2: no eps-ball, and where its search fails that is no robustness",
    ),
    "autoattack": AttackSpec(
        kind="budget",
        norms=("linf", "l2"),
        build=_autoattack,
        y_means="true labels, moved away from",
        description="the standard ensemble by its authors' package (Croce & Hein, 2020)",
    ),
    "square": AttackSpec(
        kind="budget",
        norms=("linf", "l2"),
        build=_square,
        y_means="true labels, moved away from",
        description="random search on the runtime's answers alone, 5,000 queries (Andriushchenko et al., 2020)",
        params={"queries": 5000},
        needs_gradients=False,
    ),
}
