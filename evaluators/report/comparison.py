"""The page of a comparison: what was found in sentences, then the pictures, tables and images behind them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluators.report.pages.charts import round_numbers
from evaluators.report.pages.render import write_page
from evaluators.report.pages.words import count, eps_text, percent, points
from evaluators.results import Interval
from evaluators.verdict.comparison.document import Change, ClassDifference, Comparison, Pair, PairedTest, Survival
from evaluators.verdict.comparison.findings import doubt, lowest, p_text
from evaluators.verdict.gate import WORST_CASE
from evaluators.verdict.verdicts import worst_of

MOST_CHANGES = 100
"""Changed images in a table. All of them are in the JSON."""
MOST_CLASSES, MOST_WON = 12, 4
"""Classes that are all shown. Of more, as many: those that lost most, and some that won most."""


@dataclass(frozen=True)
class Place:
    """A difference and its interval on an axis from `-limit` to `limit`, each in per cent of the axis' length."""

    label: str
    at: float
    low: float
    high: float
    value: str
    ends: str
    strong: bool


@dataclass(frozen=True)
class Differences:
    """Differences on a common axis, whose middle is no difference."""

    limit: str
    rows: Sequence[Place]


@dataclass(frozen=True)
class Share:
    """A bar, and the interval of its share."""

    label: str
    share: float
    ends: Interval
    detail: str
    strong: bool


@dataclass(frozen=True)
class Classes:
    """The classes of a test, those that lost most first.

    Attributes:
        note: what is shown, and what stands out.
        differences: None where no class differs.
    """

    test: PairedTest
    note: str
    shown: Sequence[ClassDifference]
    differences: Differences | None


@dataclass(frozen=True)
class Changes:
    """The changed images of a test.

    Attributes:
        shown: the first of them.
    """

    test: PairedTest
    shown: Sequence[Change]


@dataclass(frozen=True)
class Beside:
    """A pair, as its sections show it."""

    number: int
    name: str
    heads: Sequence[PairedTest]
    differences: Differences
    tests: Sequence[PairedTest]
    classes: Sequence[Classes]
    changes: Sequence[Changes]
    uncompared: Sequence[tuple[str, str]]


def write_comparison(found: Comparison, path: Path) -> Path:
    """Write the page; its path."""
    beside = [_beside(found, pair) for pair in found.pairs]
    survival = _survival(found)
    verdict = worst_of(each.verdict for each in found.results)
    doubts = [doubt(each) for each in found.results if each.verdict != "high"]
    contents = [("findings", "What was found"), ("survival", "What survives in the others")]
    for each in beside:
        contents += [
            (f"pair-{each.number}", f"[{each.number}] less the reference"),
            (f"classes-{each.number}", "By class"),
        ]
        contents += [(f"changes-{each.number}", "Changed images")]
    return write_page(
        path,
        "comparison.html",
        found=found,
        beside=beside,
        headline=_headline(found, survival),
        survival=survival,
        verdict=verdict,
        doubts=doubts,
        notes=[note for note in found.notes if note not in doubts],
        compared_on=found.created[:16].replace("T", " "),
        contents=[*contents, ("measured", "How this was measured")],
        p_text=p_text,
        where=_where,
        most_changes=MOST_CHANGES,
    )


def _headline(found: Comparison, survival: Sequence[tuple[Survival, Sequence[Share]]]) -> str:
    """The first finding; of several results, how many images are right in all."""
    first = found.pairs[0]
    test = next(each for each in first.tests if each.name == first.headlines[0])
    if len(found.pairs) == 1 or not survival:
        return f"{test.finding}: {'more than chance explains' if test.more_than_chance else test.evidence}."
    kept, _ = survival[0]
    are = "is" if kept.reference_right == 1 else "are"
    share = "none" if kept.in_all.share is None else percent(kept.in_all.share)
    return (
        f"Of the {count(kept.reference_right, 'image')} that {are} right in {found.results[0].name} {_where(kept)}, "
        f"{share} are right in all {len(found.results)} results."
    )


def _where(asked: PairedTest | Survival) -> str:
    """What was asked, as a clause."""
    if asked.eps is None:
        return "on clean images"
    radius = eps_text(asked.eps)
    name = asked.name.removesuffix(f"@{radius}")
    return f"under {'the worst attack' if name == WORST_CASE else name} at {radius}"


def _beside(found: Comparison, pair: Pair) -> Beside:
    tests = {each.name: each for each in pair.tests}
    heads = [tests[name] for name in pair.headlines]
    reasons: dict[str, list[str]] = {}
    for each in pair.uncompared:
        reasons.setdefault(each.reason, []).append(each.row)
    return Beside(
        number=pair.other,
        name=found.results[pair.other - 1].name,
        heads=heads,
        differences=_differences([(each.name, each, each.name in pair.headlines) for each in pair.tests]),
        tests=pair.tests,
        classes=[_classes(each) for each in heads],
        changes=[Changes(each, each.changes[:MOST_CHANGES]) for each in heads],
        uncompared=[(", ".join(rows), reason) for reason, rows in reasons.items()],
    )


def _differences(rows: Sequence[tuple[str, PairedTest | ClassDifference, bool]]) -> Differences:
    """Differences on an axis that reaches as far as the widest interval.

    Args:
        rows: label, difference, and whether it stands out.
    """
    widest = max(abs(end) for _, each, _ in rows for end in each.ci95)
    step = round_numbers(0, 100 * widest)[1]
    limit = step * math.ceil(100 * widest / step) / 100

    def place(value: float) -> float:
        return 50 + 50 * value / limit

    drawn = []
    for label, each, strong in rows:
        at, low, high = (place(value) for value in (each.difference, *each.ci95))
        drawn.append(Place(label, at, low, high, points(each.difference), _ends(each.ci95), strong))
    return Differences(f"{100 * limit:.4g}", drawn)


def _classes(test: PairedTest) -> Classes:
    ordered = sorted(test.classes, key=lambda each: each.difference)
    few = len(ordered) <= MOST_CLASSES
    chosen = ordered if few else [*ordered[: MOST_CLASSES - MOST_WON], *ordered[-MOST_WON:]]
    note = f"Weakest: {_lowest(test, 'right')}; in the reference {_lowest(test, 'reference_right')}. "
    if all(each.difference == 0 for each in ordered):
        return Classes(test, note + "No class differs: each is right as often in both.", [], None)
    if ordered[0].difference < 0:
        note += f"{ordered[0].class_} lost most, {points(ordered[0].difference)} points ({_ends(ordered[0].ci95)}). "
    if not few:
        note += f"Of {len(ordered):,} classes, those that lost most and the {MOST_WON} that won most are shown. "
    return Classes(test, note, chosen, _differences([(each.class_, each, False) for each in chosen]))


def _lowest(test: PairedTest, key: Literal["right", "reference_right"]) -> str:
    names, share = lowest(test.classes, key)
    if len(names) == 1:
        return f"{names[0]} with {percent(share)}"
    several = f"{'all ' if len(names) == len(test.classes) else ''}{len(names):,} classes"
    return f"{several} with {percent(share)} each"


def _ends(interval: Interval) -> str:
    return " to ".join(points(end) for end in interval)


def _survival(found: Comparison) -> list[tuple[Survival, Sequence[Share]]]:
    """Of each headline that all results share: the images that are right in the reference, and still are in others."""
    asked = {each.name: each for each in found.survival}
    names = dict.fromkeys(name for pair in found.pairs for name in pair.headlines if name in asked)
    chosen: list[tuple[Survival, Sequence[Share]]] = []
    for survival in (asked[name] for name in names):
        every = [*survival.results, *([survival.in_all] if len(survival.results) > 1 else [])]
        rows = [
            Share(
                f"[{each.result}] {found.results[each.result - 1].name}" if each.result else "in all of them",
                each.share,
                each.ci95,
                f"{each.kept:,} of {survival.reference_right:,}",
                strong=not each.result,
            )
            for each in every
            if each.share is not None
        ]
        chosen.append((survival, rows))
    return chosen
