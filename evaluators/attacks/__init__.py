"""ATTACKS: every attack by name. Flags, suites, tests and reports follow from its rows."""

from collections.abc import Callable, Mapping
from typing import Any

from evaluators.attacks import passes
from evaluators.attacks.art.table import ART_ATTACKS
from evaluators.attacks.autoattack.apgd.apgd import APGD
from evaluators.attacks.autoattack.dlr import DLR_CLASSES, TARGETED_DLR_CLASSES
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.autoattack.fab.fab import FAB
from evaluators.attacks.autoattack.square.square import Square
from evaluators.attacks.autoattack.stages import TARGETS
from evaluators.attacks.cw2 import CarliniWagnerL2
from evaluators.attacks.fast.ensemble import FastAutoAttack
from evaluators.attacks.jsma import SaliencyMap
from evaluators.attacks.nearest.ddn import DecoupledDirectionNorm
from evaluators.attacks.nearest.fmn import FastMinimumNorm
from evaluators.attacks.nearest.sigma_zero import SigmaZero
from evaluators.attacks.pgd import LOSSES, ProjectedGradient
from evaluators.attacks.result import SearchingAttack
from evaluators.attacks.spec import AttackSpec, Budget, Build, Estimator
from evaluators.attacks.strongest.maximum import AutoAttackMax


def _own(cls: Callable[..., SearchingAttack], **fixed: Any) -> Build:
    """Build one of our attacks with `fixed` and the row's parameters."""
    return lambda estimator, budget, params: cls(estimator, **fixed, **params, **vars(budget))


def _nearest(cls: Callable[..., SearchingAttack]) -> Build:
    """Build an attack that has no ball and draws nothing."""
    return lambda estimator, budget, params: cls(estimator, batch_size=budget.batch_size, **params)


def _drawing(cls: Callable[..., SearchingAttack]) -> Build:
    """Build an attack that has no ball, of a norm of its own, and draws where a gradient is 0."""
    return lambda estimator, budget, params: cls(estimator, seed=budget.seed, batch_size=budget.batch_size, **params)


def _in_norm(cls: Callable[..., SearchingAttack]) -> Build:
    """Build an attack that has no ball, in the norm that it is asked for."""
    return lambda estimator, budget, params: cls(
        estimator, norm=budget.norm, seed=budget.seed, batch_size=budget.batch_size, **params
    )


def _descent(**fixed: Any) -> Build:
    """Build projected gradient descent with `fixed` and the row's parameters; `relative_step` is a share of eps."""

    def build(estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> SearchingAttack:
        settings = {**fixed, **params}
        step_size = settings.pop("relative_step") * budget.eps
        return ProjectedGradient(estimator, step_size=step_size, **settings, **vars(budget))

    return build


ATTACKS: dict[str, AttackSpec] = {
    "fgsm": AttackSpec(
        norms=("linf", "l2"),
        build=_descent(init="none", steps=1, relative_step=1.0),
        description="one step of size eps, no random start (Goodfellow et al., 2015)",
        searches=False,
        single_step="pgd",
    ),
    "pgd": AttackSpec(
        build=_descent(),
        description="10 steps of eps/4 on the cross-entropy from a uniform start (Madry et al., 2018)",
        params={"steps": 10, "relative_step": 0.25, "restarts": 1, "loss": "ce"},
        choices={"loss": LOSSES},
    ),
    "mim": AttackSpec(
        build=_descent(init="none"),
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
        samples=100,  # 1,800 gradients for each, whether it breaks or not
        passes=passes.searches,
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
        passes=passes.searches,
    ),
    "fmn": AttackSpec(
        kind="min-norm",
        norms=("linf", "l2", "l1", "l0"),
        build=_in_norm(FastMinimumNorm),
        description="the nearest adversarial image in one run of 100 steps (Pintor et al., 2021)",
        params={"steps": 100, "step_size": 1.0, "gamma": 0.05},
    ),
    "ddn": AttackSpec(
        kind="min-norm",
        norms=("l2",),
        build=_drawing(DecoupledDirectionNorm),
        description="decoupled direction and norm, 100 steps (Rony et al., 2019)",
        params={"steps": 100, "gamma": 0.05, "first": 1.0},
    ),
    "sigma-zero": AttackSpec(
        kind="min-norm",
        norms=("l0",),
        build=_drawing(SigmaZero),
        description="fewest changed values by a smooth count, 1,000 steps (Cinà et al., 2025)",
        params={"steps": 1000, "step_size": 1.0, "sigma": 0.001, "threshold": 0.3, "threshold_step": 0.01},
    ),
    "autoattack": AttackSpec(
        build=_own(AutoAttack, version="standard"),
        description="the standard ensemble: APGD-CE, APGD-T, FAB-T, Square (Croce & Hein, 2020)",
        autoattack="whole",
        scale_free=True,
        asks=True,
        alarms=("square",),
        passes=passes.stages("standard"),
    ),
    "autoattack-fast": AttackSpec(
        norms=("linf", "l2"),
        build=_own(FastAutoAttack),
        description="short ascents as long as they gain, then an alarm for masked gradients; a tenth of the passes",
        autoattack="near",
        scale_free=True,
        asks=True,
        alarms=("square",),
        passes=passes.fast,
    ),
    "autoattack-max": AttackSpec(
        build=_own(AutoAttackMax),
        description="AutoAttack, then straight-through gradients, siblings (--sibling) and MultiTargeted APGD",
        params={"steps": 100, "restarts": 3, "queries": 5000},
        autoattack="whole",
        scale_free=True,
        asks=True,
        alarms=("square",),
        siblings=True,
        passes=passes.largest,
    ),
    "autoattack-plus": AttackSpec(
        build=_own(AutoAttack, version="plus"),
        description="AutoAttack with untargeted DLR and FAB and five restarts",
        autoattack="whole",
        scale_free=True,
        asks=True,  # its Square comes before its strongest gradients, and so is no alarm
        passes=passes.stages("plus"),
    ),
    "autoattack-rand": AttackSpec(
        build=_own(AutoAttack, version="rand"),
        description="AutoAttack for models that answer at random: gradients averaged over 20 passes",
        autoattack="whole",
        scale_free=True,
        averages=True,
        passes=passes.stages("rand"),
    ),
    "apgd-ce": AttackSpec(
        build=_own(APGD, loss="ce"),
        description="PGD that sets its own step size, on the cross-entropy (Croce & Hein, 2020)",
        params={"steps": 100, "restarts": 1},
        passes=passes.targeted(0),
    ),
    "apgd-dlr": AttackSpec(
        build=_own(APGD, loss="dlr"),
        fewest_classes=DLR_CLASSES,
        description="the same on the difference of logits ratio",
        scale_free=True,
        params={"steps": 100, "restarts": 1},
        passes=passes.targeted(0),
    ),
    "apgd-t": AttackSpec(
        build=_own(APGD, targets=TARGETS),
        scale_free=True,
        fewest_classes=TARGETED_DLR_CLASSES,
        description="the same towards each of the nine likeliest other classes",
        params={"steps": 100, "restarts": 1},
        passes=passes.targeted(TARGETS),
    ),
    "fab": AttackSpec(
        build=_own(FAB),
        exact=True,
        scale_free=True,
        description="steps onto the nearest linearised boundary (Croce & Hein, 2020)",
        params={"steps": 100, "restarts": 1},
    ),
    "fab-t": AttackSpec(
        build=_own(FAB, targets=TARGETS),
        exact=True,
        scale_free=True,
        description="the same towards each of the nine likeliest other classes",
        params={"steps": 100, "restarts": 1},
        passes=passes.targeted(TARGETS, checked=True),
    ),
    "square": AttackSpec(
        build=_own(Square),
        description="random search on the runtime's answers alone, 5,000 queries (Andriushchenko et al., 2020)",
        params={"queries": 5000},
        scale_free=True,
        asks=True,
        needs_gradients=False,
        passes=passes.queries,
    ),
    "jsma": AttackSpec(
        kind="min-norm",
        norms=("l2", "l0"),
        build=_nearest(SaliencyMap),
        description="pairs of pixels by saliency (Papernot et al., 2016) towards the runner-up class; few pixels",
        params={"theta": 1.0, "gamma": 0.1},
    ),
    **{f"art:{name}": row for name, row in ART_ATTACKS.items()},
}
