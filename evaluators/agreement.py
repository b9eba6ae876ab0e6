"""Our AutoAttack beside its authors': the same images, one by one, stage by stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluators.paired import Paired, paired
from evaluators.record import Evaluation

OURS, THEIRS = "autoattack", "autoattack-reference"


@dataclass(frozen=True)
class Agreement:
    """What one seed gave.

    Attributes:
        seed: of both.
        n, right: images, and how many of them the clean model gets right.
        after: for each stage its name and the images robust after it, ours and the authors'.
        robust: images robust after the whole ensemble, ours and the authors'.
        compared: the two outcomes, paired; the difference is ours minus theirs.
        only_ours, only_theirs: dataset indices of the images that only one of the two broke.
        seconds: of each.
    """

    seed: int
    n: int
    right: int
    after: list[tuple[str, int, int]]
    robust: tuple[int, int]
    compared: Paired
    only_ours: list[int]
    only_theirs: list[int]
    seconds: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**vars(self), "compared": vars(self.compared)}


def agreement(evaluation: Evaluation) -> Agreement:
    """Compare the two rows of one evaluation.

    Raises:
        ValueError: it does not hold both.
    """
    units = {outcome.row.attack: outcome.unit for outcome in evaluation.outcomes}
    ours, theirs = units.get(OURS), units.get(THEIRS)
    if ours is None or theirs is None:
        raise ValueError(f"expected rows {OURS} and {THEIRS}, got {', '.join(units) or 'none'}")
    right = int(evaluation.clean_right.sum())

    def robust_after(stage: int) -> tuple[int, int]:
        broken = (int(((unit.broken_by >= 0) & (unit.broken_by <= stage)).sum()) for unit in (ours, theirs))
        first, second = (right - each for each in broken)
        return first, second

    stages = ours.stages or theirs.stages
    held = tuple(unit.attacked & ~unit.broken for unit in (ours, theirs))
    return Agreement(
        evaluation.seed,
        len(evaluation.labels),
        right,
        [(name, *robust_after(number)) for number, name in enumerate(stages)],
        (int(held[0].sum()), int(held[1].sum())),
        paired(held[0], held[1]),
        evaluation.index[held[1] & ~held[0]].tolist(),
        evaluation.index[held[0] & ~held[1]].tolist(),
        (ours.seconds, theirs.seconds),
    )


def together(agreements: Sequence[Agreement]) -> dict[str, float]:
    """Mean difference of all seeds, as a fraction of the images, and McNemar's p of all their images together."""
    only_ours = sum(len(each.only_ours) for each in agreements)
    only_theirs = sum(len(each.only_theirs) for each in agreements)
    n = sum(each.n for each in agreements)
    # Seeds of one image are not independent, which makes this p smaller than it should be: on the safe side.
    first = np.repeat([True, False, True], [only_theirs, only_ours, n - only_ours - only_theirs])
    second = np.repeat([False, True, True], [only_theirs, only_ours, n - only_ours - only_theirs])
    return {"difference": (only_theirs - only_ours) / n, "p": paired(first, second).p}
