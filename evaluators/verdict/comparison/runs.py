"""Results brought to the images that all of them saw, in one order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from dgad_tk.common import UserError
from evaluators.verdict.records import Places, Question, Record, Right

NOT_FINITE = "no finite answer"


@dataclass(frozen=True)
class View:
    """What one result says to one question, of the N images that all results saw.

    Attributes:
        seen: which of them were looked at.
        right: which are right, clean or still under attack; false where not seen.
        answer: int64 `(N,)`.
    """

    seen: Right
    right: Right
    answer: NDArray[np.int64]


class Run:
    """A result on the images that all saw, in the order of the dataset.

    Args:
        common: places in the dataset, ascending, int64 `(N,)`.

    Attributes:
        index: the same.
        label: int64 `(N,)`.
        clean: its answers to the clean images.
        rows: its budget rows by their question.
    """

    def __init__(self, record: Record, common: Places) -> None:
        self.record, self.rows, self.index = record, record.rows, common
        self.at = np.intersect1d(record.index, common, return_indices=True)[1]
        self.label = record.label[self.at]
        self.clean = View(np.ones(len(common), dtype=bool), record.clean[self.at], record.answer[self.at])
        self._names = _class_names(record)

    def done(self, question: Question) -> bool:
        """Whether it has an answer."""
        row = self.rows.get(question)
        return row is not None and row.id in self.record.robust

    def view(self, question: Question) -> View:
        """What the row of a question says that is done."""
        row = self.rows[question]
        seen = self.at < row.n
        at = np.where(seen, self.at, 0)
        return View(seen, self.record.robust[row.id][at] & seen, self.record.attacked[row.id][at])

    def worst(self, questions: Sequence[Question]) -> Right:
        """The images that are right when clean and withstand every row of these questions."""
        return np.asarray(np.logical_and.reduce([self.clean.right, *(self.view(each).right for each in questions)]))

    def name(self, answer: int) -> str:
        """The class of an answer or a label."""
        return NOT_FINITE if answer < 0 else self._names.get(answer, f"class {answer}")


def common_images(records: Sequence[Record], called: Sequence[str]) -> Places:
    """The images that all saw, which must be all of those that one of them saw.

    Args:
        called: what to call each record, for errors.

    Raises:
        UserError: two of them saw images that the other did not see.
    """
    common: Places = reduce(np.intersect1d, [each.index for each in records])
    fewest = min(range(len(records)), key=lambda number: len(records[number].index))
    least = records[fewest].index
    for other, name in zip(records, called, strict=True):
        shared = len(np.intersect1d(least, other.index))
        if shared < len(least):
            raise UserError(
                f"{called[fewest]} saw {len(least):,} images and {name} {len(other.index):,}: they share {shared:,}",
                hint="attack both with the same --limit, or with none",
            )
    return common


def whole(runs: Sequence[Run]) -> list[Question]:
    """The questions that every result answers for every image, in the order of the reference."""
    done = [each for each in runs[0].rows if all(run.done(each) for run in runs)]
    return [each for each in done if all(run.view(each).seen.all() for run in runs)]


def _class_names(record: Record) -> dict[int, str]:
    """Names of classes by their number, from the results; older ones name only the classes that have images."""
    results = record.results
    recorded = (results.model.metadata or {}).get("classes")
    names = dict(enumerate(map(str, recorded))) if isinstance(recorded, list) else {}
    labels, named = np.unique(record.label).tolist(), [each.class_ for each in results.clean.classes]
    if len(labels) == len(named):
        names |= dict(zip(labels, named, strict=True))
    names |= dict(enumerate(results.dataset.classes))
    times = Counter(names.values())  # two classes of one name stay two
    return {number: name if times[name] == 1 else f"{name} [{number}]" for number, name in names.items()}
