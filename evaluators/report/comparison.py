"""The page of a comparison: what was found in sentences, then the pictures, tables and images behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluators.report.pages.charts import round_numbers
from evaluators.report.pages.render import write_page
from evaluators.report.pages.words import count, eps_text, percent, points
from evaluators.results import Interval
from evaluators.verdict.comparison.document import Change, ClassDifference, Comparison, Pair, PairedTest, Survival
from evaluators.verdict.comparison.findings import p_text
from evaluators.verdict.verdicts import worst_of

MOST_CHANGES = 100
"""Changed images in a table. All of them are in the JSON."""
MOST_CLASSES = 12
"""Classes that are all shown. Of more, those that lost most and those that won most."""


@dataclass(frozen=True)
class Place:
    """A difference and its interval on an axis from `-limit` to `limit`, each in per cent of the axis' length."""

    label: str
    at: float
    low: float
    high: float
    value: str
    ends: str
    detail: str
    strong: bool


@dataclass(frozen=True)
class Differences:
    """Differences on a common axis, whose middle is no difference."""

    limit: str
    rows: Sequence[Place]


@dataclass(frozen=True)
class Share:
    """A row of bars or of dots."""

    label: str
    first: float
    second: float
    share: float
    ends: Interval | None
    detail: str
    strong: bool = False


@dataclass(frozen=True)
class Classes:
    """The classes of a test.

    Attributes:
        note: what is shown, and what stands out.
    """

    test: PairedTest
    note: str
    rows: Sequence[Share]


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
    contents = [("findings", "What was found"), ("survival", "What survives in the others")]
    for each in beside:
        contents += [(f"pair-{each.number}", f"[{each.number}] in figures"), (f"classes-{each.number}", "By class")]
        contents += [(f"changes-{each.number}", "Changed images")]
    return write_page(
        path,
        "comparison.html",
        found=found,
        beside=beside,
        headline=_headline(found, survival),
        survival=survival,
        verdict=verdict,
        contents=[*contents, ("measured", "How this was measured")],
        p_text=p_text,
        most_changes=MOST_CHANGES,
    )


def _headline(found: Comparison, survival: Sequence[tuple[Survival, Sequence[Share]]]) -> str:
    """The first finding; of several results, how many images are right in all."""
    first = found.pairs[0]
    test = next(each for each in first.tests if each.name == first.headlines[0])
    if len(found.pairs) == 1 or not survival:
        if test.lost == test.won:
            return f"{test.finding}."
        return f"{test.finding}: {'more than chance explains' if test.more_than_chance else 'chance can explain it'}."
    kept, _ = survival[0]
    under = "" if kept.eps is None else f" under attack at {eps_text(kept.eps)}"
    are = "is" if kept.reference_right == 1 else "are"
    share = "none" if kept.in_all.share is None else percent(kept.in_all.share)
    return (
        f"Of the {count(kept.reference_right, 'image')} that {are} right in {found.results[0].name}{under}, "
        f"{share} are right in all {len(found.results)} results."
    )


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
        differences=_differences(pair.tests, pair.headlines),
        tests=pair.tests,
        classes=[_classes(each) for each in heads],
        changes=[Changes(each, each.changes[:MOST_CHANGES]) for each in heads],
        uncompared=[(", ".join(rows), reason) for reason, rows in reasons.items()],
    )


def _differences(tests: Sequence[PairedTest], strong: Sequence[str]) -> Differences:
    widest = max(abs(end) for test in tests for end in test.ci95)
    step = round_numbers(0, 100 * widest)[1]
    limit = step * -(-100 * widest // step) / 100

    def place(value: float) -> float:
        return 50 + 50 * value / limit

    rows = [
        Place(
            test.name,
            place(test.difference),
            *(place(end) for end in test.ci95),
            points(test.difference),
            " to ".join(points(end) for end in test.ci95),
            f"p {p_text(test.p_adjusted)}",
            test.name in strong,
        )
        for test in tests
    ]
    return Differences(f"{100 * limit:.4g}", rows)


def _classes(test: PairedTest) -> Classes:
    ordered = sorted(test.classes, key=lambda each: each.difference)
    few = len(ordered) <= MOST_CLASSES
    chosen = ordered if few else [*ordered[: MOST_CLASSES - 4], *ordered[-4:]]
    worst = min(test.classes, key=lambda each: each.right / each.n)
    before = min(test.classes, key=lambda each: each.reference_right / each.n)
    note = (
        f"The weakest class is {worst.class_} with {percent(worst.right / worst.n)}; in the reference it is "
        f"{before.class_} with {percent(before.reference_right / before.n)}. "
    )
    if ordered and ordered[0].difference < 0:
        note += f"{ordered[0].class_} lost most, {points(ordered[0].difference)} points ({_ends(ordered[0])}). "
    note += "" if few else f"Of {len(ordered):,} classes, those that lost most and the four that won most are shown. "
    return Classes(test, note, [_class_row(each) for each in chosen])


def _class_row(each: ClassDifference) -> Share:
    first, second = each.reference_right / each.n, each.right / each.n
    return Share(each.class_, first, second, second, None, f"{points(each.difference)} ({_ends(each)}), n {each.n:,}")


def _ends(each: ClassDifference) -> str:
    return " to ".join(points(end) for end in each.ci95)


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
                each.share,
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
