"""Two or more results on the same images, each compared with the first: `dgad compare`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Literal

import numpy as np

from dgad_tk.answers.doubts import wilson
from dgad_tk.strangers.names import shown
from dgad_tk.strangers.number_text import format_fraction
from evaluators.verdict.comparison.document import (
    Adjustment,
    Change,
    ClassDifference,
    Compared,
    Comparison,
    Images,
    Kept,
    Pair,
    PairedTest,
    Survival,
    Uncompared,
)
from evaluators.verdict.comparison.findings import evidence, finding, notes, short_names
from evaluators.verdict.comparison.runs import Run, View, common_images, whole
from evaluators.verdict.gate import CLEAN, WORST_CASE
from evaluators.verdict.paired import CHANCE, Paired, holm, paired
from evaluators.verdict.records import Question, Record, Right, same_questions, shared_places

UNMET = "the two looked at none of these images both"
UNBOUNDED = "looks for the nearest adversarial image, so it has no robust accuracy"


@dataclass(frozen=True)
class _Asked:
    """A test to be made.

    Attributes:
        where: a clause for sentences.
        questions: that it is about, none for clean images.
    """

    name: str
    kind: Literal["clean", "row", "worst-case"]
    where: str
    questions: tuple[Question, ...] = ()
    eps: float | None = None


ON_CLEAN = _Asked(CLEAN, "clean", "on clean images")


def comparison(records: Sequence[Record], files: Sequence[str], *, command: str = "") -> Comparison:
    """Compare each record with the first, on the images that all saw.

    A row is compared with the reference's where both are done, with the same attack, surrogate, norm, eps and settings.
    The worst case at a radius is over the rows up to that radius that all results have, on all of these images; where
    these are rows of a single attack, the row itself is the worst case.

    Args:
        files: where each was read.
        command: what was typed, for the record.

    Raises:
        UserError: another dataset, no row in common, other settings of an attack, other images.
    """
    called = [f"'{file}'" for file in files]
    for record, name in zip(records[1:], called[1:], strict=True):
        same_questions(record, records[0], (name, called[0]))
        shared_places(record, records[0], (name, called[0]))
    common = common_images(records, called)
    reference, *others = runs = [Run(each, common) for each in records]
    names = short_names([each.results.model.path for each in records])
    worst = list(_worst_cases(runs))
    plans = [[*_single(reference, other), *worst] for other in others]
    found = [[_paired(reference, other, each) for each in plan] for other, plan in zip(others, plans, strict=True)]
    adjusted = iter(holm([each.p for each in chain(*found)]))
    family = Adjustment(tests=sum(map(len, plans)), level=CHANCE)
    pairs = []
    for number, (other, plan, differences) in enumerate(zip(others, plans, found, strict=True), 2):
        tests = [
            _test(reference, other, asked, each, next(adjusted), family.tests, (names[0], names[number - 1]))
            for asked, each in zip(plan, differences, strict=True)
        ]
        headlines = [*_headlines(runs, worst, plan), CLEAN]
        pairs.append(Pair(other=number, headlines=headlines, tests=tests, uncompared=_uncompared(reference, other)))
    alike = [ON_CLEAN, *(_row(reference, each) for each in whole(runs)), *worst]
    results = [_compared(*each) for each in zip(range(1, len(runs) + 1), names, files, records, strict=True)]
    surrogates = {each[1] for each in reference.rows if each[1] is not None and all(run.done(each) for run in runs)}
    dataset = records[0].results.dataset
    return Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        images=Images(name=dataset.name, split=dataset.split, n=len(common)),
        results=results,
        adjustment=family,
        pairs=pairs,
        survival=[_survival(runs, each) for each in alike],
        notes=notes(
            results,
            len(common),
            sorted(surrogates),
            [each for each, record in zip(results, records, strict=True) if _flattered(record)],
        ),
    )


def _worst_cases(runs: Sequence[Run]) -> Iterator[_Asked]:
    """The worst case at each radius up to which there are rows of several attacks."""
    rows = whole(runs)
    radii = sorted({each[3] for each in rows})
    for eps in radii:
        inside = tuple(each for each in rows if each[3] <= eps)
        if len({each[:2] for each in inside}) > 1:
            name = f"{WORST_CASE}@{format_fraction(eps)}" if len(radii) > 1 else WORST_CASE
            yield _Asked(name, "worst-case", f"under the worst attack at {format_fraction(eps)}", inside, eps)


def _single(reference: Run, other: Run) -> Iterator[_Asked]:
    """Clean images, and every row that both have."""
    yield ON_CLEAN
    for question in reference.rows:
        if reference.done(question) and other.done(question) and _met(reference, other, question):
            yield _row(reference, question)


def _met(reference: Run, other: Run, question: Question) -> bool:
    """Whether a row that is done in both looked at an image in both."""
    return bool((reference.view(question).seen & other.view(question).seen).any())


def _row(reference: Run, question: Question) -> _Asked:
    row, eps = reference.rows[question], question[3]
    return _Asked(row.id, "row", f"under {shown(row.names[0])} at {format_fraction(eps)}", (question,), eps)


def _headlines(runs: Sequence[Run], worst: Sequence[_Asked], plan: Sequence[_Asked]) -> list[str]:
    """The worst case at each radius, or the only row that there is; where no row saw all images, every row."""
    said = {each.eps or 0.0: each.name for each in worst}
    for question in whole(runs):
        said.setdefault(question[3], runs[0].rows[question].id)
    names = [said[eps] for eps in sorted(said, reverse=True)]
    return names or [each.name for each in plan if each.kind == "row"]


def _views(reference: Run, other: Run, asked: _Asked) -> list[tuple[str, View, View]]:
    """The clean answers, and those to each row that a test is about."""
    rows = [(reference.rows[each].id, reference.view(each), other.view(each)) for each in asked.questions]
    return [(CLEAN, reference.clean, other.clean), *rows]


def _outcomes(reference: Run, other: Run, asked: _Asked) -> tuple[Right, Right, Right]:
    """Which images both looked at, and where each of the two is right in all that was asked."""
    seen, before, after = (np.ones(len(reference.index), dtype=bool) for _ in range(3))
    for _, first, second in _views(reference, other, asked):
        seen &= first.seen & second.seen
        before &= first.right
        after &= second.right
    return seen, before, after


def _paired(reference: Run, other: Run, asked: _Asked) -> Paired:
    seen, before, after = _outcomes(reference, other, asked)
    return paired(after[seen], before[seen])


def _test(
    reference: Run, other: Run, asked: _Asked, found: Paired, adjusted: float, tests: int, names: tuple[str, str]
) -> PairedTest:  # fmt: skip
    seen, before, after = _outcomes(reference, other, asked)
    what = "accurate" if asked.kind == "clean" else "robust"
    return PairedTest(
        name=asked.name,
        kind=asked.kind,
        norm=asked.questions[0][2] if asked.questions else None,
        eps=asked.eps,
        rows=[reference.rows[each].id for each in asked.questions],
        n=found.n,
        reference_right=int(before[seen].sum()),
        right=int(after[seen].sum()),
        difference=found.difference,
        ci95=found.ci95,
        lost=found.only_second,
        won=found.only_first,
        p=found.p,
        p_adjusted=adjusted,
        more_than_chance=adjusted < CHANCE,
        finding=finding(found, what, asked.where, names, real=adjusted < CHANCE),
        evidence=evidence(found, adjusted, tests, names[1]),
        classes=list(_classes(reference, seen, before, after)),
        changes=list(_changes(reference, other, asked)),
    )


def _classes(reference: Run, seen: Right, before: Right, after: Right) -> Iterator[ClassDifference]:
    for label in np.unique(reference.label[seen]).tolist():
        here = seen & (reference.label == label)
        found = paired(after[here], before[here])
        yield ClassDifference(
            class_=reference.name(label),
            n=found.n,
            reference_right=int(before[here].sum()),
            right=int(after[here].sum()),
            difference=found.difference,
            ci95=found.ci95,
        )


def _changes(reference: Run, other: Run, asked: _Asked) -> Iterator[Change]:
    seen, before, after = _outcomes(reference, other, asked)
    views = _views(reference, other, asked)
    for at in np.flatnonzero(seen & (before != after)).tolist():
        lost = bool(before[at])
        row, first, second = next(each for each in views if not (each[2] if lost else each[1]).right[at])
        yield Change(
            index=int(reference.index[at]),
            change="lost" if lost else "won",
            label=reference.name(int(reference.label[at])),
            reference_answer=reference.name(int(first.answer[at])),
            answer=other.name(int(second.answer[at])),
            row=row,
        )


def _uncompared(reference: Run, other: Run) -> list[Uncompared]:
    """The rows that only one of the two has an answer to, and those that no radius bounds."""
    found: dict[str, str] = {}
    for run, where, missing in ((reference, "the reference", other), (other, "the other", reference)):
        for question, row in run.rows.items():
            if question not in missing.rows:
                found.setdefault(row.id, f"only in {where}")
            elif row.status != "done":
                found.setdefault(row.id, f"{row.status} in {where}: {row.reason}")
            elif run.done(question) and missing.done(question) and not _met(run, missing, question):
                found.setdefault(row.id, UNMET)
        found |= {row.id: UNBOUNDED for row in run.record.results.attacks if row.eps is None}
    return [Uncompared(row=row, reason=reason) for row, reason in found.items()]


def _survival(runs: Sequence[Run], asked: _Asked) -> Survival:
    held = [_outcomes(run, run, asked)[1] for run in runs]
    return Survival(
        name=asked.name,
        eps=asked.eps,
        n=len(held[0]),
        reference_right=int(held[0].sum()),
        results=[_kept(number, each, held[0]) for number, each in enumerate(held[1:], 2)],
        in_all=_kept(0, np.logical_and.reduce(held), held[0]),
    )


def _kept(result: int, held: Right, before: Right) -> Kept:
    kept, of = int((held & before).sum()), int(before.sum())
    return Kept(result=result, right=int(held.sum()), kept=kept, share=kept / of if of else None, ci95=wilson(kept, of))


def _flattered(record: Record) -> bool:
    """Whether a file is INT8, by its format, its reader or its own record, and no attack saw past its rounding."""
    model, checks = record.results.model, record.results.checks
    seen = any(item.name == "quantised" and item.verdict == "high" for item in checks.items)
    return "int8" in f"{model.format} {model.computes_in}".lower() and not seen


def _compared(number: int, name: str, file: str, record: Record) -> Compared:
    results = record.results
    return Compared(
        number=number,
        name=name,
        file=file,
        path=results.model.path,
        sha256=results.model.sha256,
        format=results.model.format,
        n=results.dataset.n,
        created=results.created,
        seed=results.seed,
        verdict=results.checks.verdict,
        doubts=[each for each in results.checks.items if each.verdict != "high"],
    )
