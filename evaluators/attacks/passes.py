"""What an attack costs an image that it does not break, in passes through the network. A forecast is made of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dgad_tk.config.threat import Norm
from evaluators.attacks.autoattack.stages import TARGETS, Stage, Version, ensemble

APGD_STEPS, FAB_STEPS, QUERIES = 100, 100, 5000
"""Of the stages of AutoAttack."""
FAST = (120.0, 195.0)
"""Measured of autoattack-fast, which ends by itself: images of digits and CIFAR-10 that it did not break."""


@dataclass(frozen=True)
class Case:
    """What the number of passes depends on.

    Attributes:
        params: of the row.
        classes: K.
        side: shorter side of the images in pixels.
        quantised: the file is INT8.
        siblings: models besides the attacked one that are searched on.
    """

    params: Mapping[str, Any]
    norm: Norm
    classes: int
    side: int
    quantised: bool = False
    siblings: int = 0


@dataclass(frozen=True)
class Passes:
    """Passes of one image: forward alone, and forward with backward."""

    forwards: float
    gradients: float

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forwards + other.forwards, self.gradients + other.gradients)

    @property
    def all(self) -> int:
        """A gradient is two passes."""
        return round(self.forwards + 2 * self.gradients)


Count = Callable[[Case], Passes]


def searches(case: Case) -> Passes:
    """Carlini & Wagner: a gradient for each iteration of each search step."""
    return Passes(0, case.params["binary_search_steps"] * case.params["max_iter"])


def queries(case: Case) -> Passes:
    """Square: an answer for each query."""
    return Passes(case.params["queries"], 0)


def targeted(targets: int, *, checked: bool = False) -> Count:
    """Steps towards each of several targets, or untargeted ones for 0; `checked` asks for the answer after each."""

    def count(case: Case) -> Passes:
        steps = case.params["steps"] * case.params["restarts"] * max(1, min(targets, case.classes - 1))
        return Passes(steps if checked else 0, steps)

    return count


def stages(version: Version) -> Count:
    """AutoAttack in one of its versions."""

    def count(case: Case) -> Passes:
        found, _ = ensemble(version, classes=case.classes, norm=case.norm, side=case.side)
        return sum(map(_of_stage, found), Passes(0, 0))

    return count


def fast(case: Case) -> Passes:
    """The fast ensemble, whose number of rounds depends on the image; with few classes it has fewer targets."""
    forwards, gradients = FAST
    few = min(TARGETS, case.classes - 1) / TARGETS
    return Passes(forwards, gradients * max(few, 0.4))


def largest(case: Case) -> Passes:
    """AutoAttack, and what `AutoAttackMax` adds; siblings count as models of the same size."""
    targets = min(TARGETS, case.classes - 1)
    steps, restarts = case.params["steps"], case.params["restarts"]
    found = stages("standard")(case) + Passes(0, targets * restarts * steps)
    if case.quantised:
        found += Passes(case.params["queries"], (1 + targets) * steps)
    return found + Passes(0, case.siblings * steps * (1 + 3 * targets))


def _of_stage(stage: Stage) -> Passes:
    if stage.name == "square":
        return Passes(QUERIES, 0)
    of_fab = stage.name.startswith("fab")
    steps = (FAB_STEPS if of_fab else APGD_STEPS) * stage.restarts * max(1, stage.targets)
    return Passes(steps if of_fab else 0, steps * stage.eot)
