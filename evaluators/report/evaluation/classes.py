"""Class by class: clean and robust accuracy, and what images were taken for."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dgad_tk.answers.doubts import NOT_ATTACKED, NOT_FINITE
from evaluators.report.evaluation.attacks import Cell, Heat
from evaluators.report.evaluation.headline import main_case, weakest_class
from evaluators.report.evidence import Evidence, Samples
from evaluators.report.pages.charts import Axis, Chart, histogram
from evaluators.report.pages.words import count, name, percent
from evaluators.results import Results

MOST = 12
"""Classes that are shown each; of more, the weakest and the strongest, and how the rest are spread."""
WEAKEST, STRONGEST, PAIRS = 10, 3, 10


@dataclass(frozen=True)
class ClassRow:
    """A class: clean and robust accuracy."""

    label: str
    first: float
    second: float
    strong: bool
    detail: str


@dataclass(frozen=True)
class Classes:
    """Class by class.

    Attributes:
        rows: the weakest first. Of many classes, only some.
        best: the strongest of many.
        spread: how robust accuracy is spread over many classes.
        note: the finding.
    """

    rows: list[ClassRow]
    best: list[ClassRow]
    spread: Chart | None
    note: str


@dataclass(frozen=True)
class Taken:
    """What images were taken for under attack: a table of few classes, the commonest pairs of many."""

    heat: Heat | None
    pairs: list[tuple[str, str, int]]
    note: str


def by_class(results: Results) -> Classes | None:
    """Clean and robust accuracy of every class; None where no attack with a limit saw all images."""
    case = main_case(results)
    if case is None or not case.classes:
        return None
    # Both list the classes that have images, in the order of the labels. Names may repeat.
    before = [each.right / each.n for each in results.clean.classes]
    if len(before) != len(case.classes):
        return None
    pairs = sorted(zip(case.classes, before, strict=True), key=lambda pair: pair[0].right / pair[0].n)
    single = weakest_class(case)
    rows = [
        ClassRow(each.class_, share, each.right / each.n, each is single, f"of {each.n:,}") for each, share in pairs
    ]
    shares = [row.second for row in rows]
    few = min(each.n for each in case.classes)
    note = "Open dots: clean. Filled: under the worst attack."
    if single is None:
        note += f" Several classes share the lowest figure, {percent(shares[0])}."
    else:
        hides = shares[0] < case.robust_accuracy - 0.05
        tail = f"; the average of {percent(case.robust_accuracy)} hides it." if hides else "."
        note += f" The weakest is {name(single.class_)}, {percent(shares[0])}{tail}"
    if few < 50:
        note += f" Some classes have only {count(few, 'image')}, so that single images move their figures."
    if len(rows) <= MOST:
        return Classes(rows, [], None, note)
    spread = histogram(
        [shares],
        Axis("robust accuracy of a class", 0.0, 1.0, [(each / 4, f"{25 * each} %") for each in range(5)]),
        bins=20,
        noun="classes",
        alt=f"Robust accuracy of {len(rows):,} classes; the median is {percent(float(np.median(shares)))}",
    )
    return Classes(rows[:WEAKEST], rows[: -STRONGEST - 1 : -1], spread, note)


def answers_under_attack(evidence: Evidence) -> NDArray[np.int64] | None:
    """What the images that broke were taken for at the main radius, `(n,)`; NOT_ATTACKED where none did break.

    Of several attacks that broke an image, the strongest row answers.
    """
    results, samples, case = evidence.results, evidence.samples, main_case(evidence.results)
    if samples is None or case is None:
        return None
    rows = [
        row
        for row in evidence.done
        if row.eps is not None and row.eps <= case.eps and row.n == results.dataset.n and row.id in samples.rows
    ]
    found = np.full(results.dataset.n, NOT_ATTACKED, dtype=np.int64)
    for row in sorted(rows, key=lambda each: each.robust or 0):
        broke = broken(samples, row.id) & (found == NOT_ATTACKED)
        found[broke] = samples.rows[row.id]["adv_pred"][broke]
    return found


def broken(samples: Samples, row: str) -> NDArray[np.bool_]:
    """Which of the first m images a row broke: right when clean, and not after it. `(m,)`."""
    held = samples.rows[row]["robust"].astype(bool)
    m = len(held)
    return np.asarray(
        (samples.clean_pred[:m] == samples.label[:m]) & ~held & (samples.rows[row]["adv_pred"] != NOT_ATTACKED)
    )


def taken_for(evidence: Evidence) -> Taken | None:
    """What images were taken for under attack; None where nothing broke or the outcomes are not at hand."""
    answers = answers_under_attack(evidence)
    if answers is None or evidence.samples is None or not (answers != NOT_ATTACKED).any():
        return None
    at = np.flatnonzero(answers != NOT_ATTACKED)
    pairs = Counter(zip(evidence.samples.label[at].tolist(), answers[at].tolist(), strict=True))
    (label, answer), most = pairs.most_common(1)[0]
    became = "got no answer" if answer == NOT_FINITE else f"was taken for {evidence.class_name(answer)}"
    note = f"Most often {evidence.class_name(label)} {became}: {count(most, 'time')}."
    classes = max(len(evidence.results.dataset.classes), int(evidence.samples.label.max()) + 1)
    if classes > MOST:
        named = [
            (evidence.class_name(one), evidence.class_name(other), n) for (one, other), n in pairs.most_common(PAIRS)
        ]
        return Taken(None, named, note)
    names = {number: evidence.class_name(number) for number in range(classes)}
    none = {NOT_FINITE: evidence.class_name(NOT_FINITE)} if (answers == NOT_FINITE).any() else {}
    return Taken(_table(pairs, names, names | none, most), [], note)


def _table(pairs: Counter[tuple[int, int]], labels: Mapping[int, str], answers: Mapping[int, str], most: int) -> Heat:
    """Labels down, answers across: the same classes, and no answer where that occurs."""
    rows = []
    for label, own in labels.items():
        cells = [
            Cell("", None) if label == answer or not pairs[label, answer] else Cell(f"{n:,}", n / most)
            for answer, n in ((answer, pairs[label, answer]) for answer in answers)
        ]
        rows.append((own, cells))
    return Heat("was \\ became", list(answers.values()), rows)
