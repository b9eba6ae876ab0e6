"""What trials tell: which preprocessing a file wants, which cannot be told apart, or that none fits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dgad_tk.answers.doubts import CHANCE, Classes, OtherOrder, is_common, little, other_order, wilson
from evaluators.preprocessings.chance import above_guessing, names_fit, one_to_one
from evaluators.preprocessings.table import Candidate
from evaluators.preprocessings.trial import Trial, guessing_on, surely_better

Verdict = Literal["found", "tied", "none"]


@dataclass(frozen=True)
class Row:
    """A candidate as it is judged.

    Attributes:
        answers: for the first images, int64 `(n,)`.
        right: where they are right in the order of classes `order`, bool `(n,)`.
        order: the order of classes in which it seems to answer; None for that of the labels.
        leads: whether it is the best, or cannot be told from the best.
    """

    candidate: Candidate
    answers: Classes
    right: NDArray[np.bool_]
    order: OtherOrder | None
    leads: bool = False

    @property
    def n(self) -> int:
        return len(self.right)

    @property
    def correct(self) -> int:
        return int(np.count_nonzero(self.right))

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson(self.correct, self.n)


@dataclass(frozen=True)
class Finding:
    """All rows, best first, and what they say.

    Attributes:
        verdict: "found" if the first row is surely better than guessing and than every other; "tied" if it is not
            surely better than some, which lead too; "none" if no row is surely better than guessing, or other names
            of the classes would fit as well.
        guessing: what guessing gives: the share of the largest class, and at least one over the number of classes.
        alike: whether all rows that lead give the same answers to all images.
    """

    rows: list[Row]
    verdict: Verdict
    guessing: float
    alike: bool

    @property
    def leading(self) -> list[Row]:
        return [row for row in self.rows if row.leads]

    @property
    def low(self) -> bool:
        """Whether even the best is right so seldom that something else may be wrong."""
        return little(self.rows[0].ci95[0], self.guessing)


def find(trials: Sequence[Trial], labels: Classes, names: Sequence[str], classes: int) -> Finding:
    """Rank trials.

    A candidate that needs no other order of classes is believed before one that does, unless that is surely better:
    among so many orders some fits by accident.

    Args:
        labels: of all images that any of them was tried on.
        names: of the classes, in the order of the labels.
        classes: that the file tells apart.
    """
    last = max(len(trial.answers) for trial in trials)
    guessing = guessing_on(labels[:last], classes)
    rows = [_row(trial, labels[: len(trial.answers)], names, classes, guessing, len(trials)) for trial in trials]
    finals = [row for row in rows if row.n == last]
    best = max(finals, key=lambda row: row.correct)
    plain = max((row for row in finals if row.order is None), key=lambda row: row.correct, default=best)
    leader = best if surely_better(best.right, plain.right) else plain
    told = _fits(leader, labels[:last], len(names), guessing, len(trials))

    def leads(row: Row) -> bool:
        if not told or row.n < last or (row.order is not None and leader.order is None):
            return row is leader
        return not surely_better(leader.right, row.right)

    marked = [replace(row, leads=leads(row)) for row in rows]
    # The sort is stable: of equals, the one that changes images least stays in front.
    marked.sort(key=lambda row: (not row.leads, row.order is not None and row.leads, -row.n, -row.correct))
    leading = [row for row in marked if row.leads]
    alike = all((row.answers == leading[0].answers).all() for row in leading)
    verdict: Verdict = "none" if not told else "found" if len(leading) == 1 else "tied"
    return Finding(marked, verdict, guessing, alike)


def _row(trial: Trial, labels: Classes, names: Sequence[str], classes: int, guessing: float, tried: int) -> Row:
    plain = Row(trial.candidate, trial.answers, np.asarray(trial.answers == labels), None)
    order = other_order(labels, trial.answers, names, classes)
    if order is None:
        return plain
    # An order that was searched for is believed where most classes are in place without it, or all have answers of
    # their own.
    if not (
        is_common(order.order, names)
        or _fits(plain, labels, len(names), guessing, tried)
        or one_to_one(labels, trial.answers, order.after)
    ):
        return plain
    return replace(plain, right=np.asarray(trial.answers == order.order[labels]), order=order)


def _fits(row: Row, labels: Classes, names: int, guessing: float, tried: int) -> bool:
    """Whether its accuracy is more than guessing and more than an accident of names."""
    if not above_guessing(row.right, guessing, CHANCE / tried):
        return False
    order = np.arange(names) if row.order is None else row.order.order
    return names_fit(labels, row.answers, order, tried)
