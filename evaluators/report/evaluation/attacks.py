"""What the attacks found: bars per radius, attacks without a limit, stages, accuracy against eps, transfer."""

from dataclasses import dataclass
from itertools import pairwise

from evaluators.report.evaluation.headline import main_case
from evaluators.report.evidence import Evidence, number, recorded
from evaluators.report.pages.charts import PERCENT, Axis, Chart, Line, line_chart
from evaluators.report.pages.words import count, duration, eps_text, listed, percent
from evaluators.results import Attack, Interval, Results

MOST_ROWS = 60
"""Rows of results that a page shows at one place; nobody reads more, and a stranger's file may have thousands."""


@dataclass(frozen=True)
class Bar:
    """A share as a bar."""

    label: str
    share: float
    ends: Interval | None = None
    strong: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Radius:
    """The attacks inside one ball.

    Attributes:
        note: how to read it, and the finding.
    """

    eps: str
    bars: list[Bar]
    note: str


@dataclass(frozen=True)
class Part:
    """A piece of a stacked bar: what it is called, how many images, and its colour."""

    text: str
    n: int
    style: str
    seconds: str = ""


@dataclass(frozen=True)
class Stages:
    """What became of all images under an ensemble of attacks."""

    row: str
    parts: list[Part]
    said: str


@dataclass(frozen=True)
class Cell:
    """A number of a heat map: its text, and how dark it is, 0 to 1."""

    text: str
    value: float | None


@dataclass(frozen=True)
class Heat:
    """A table of numbers whose background says how large they are."""

    corner: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class Printed:
    """A figure of the paper beside the one that was found here; `here` is None where no such attack ran."""

    what: str
    paper: float
    here: float | None
    detail: str = ""


def radii(results: Results) -> list[Radius]:
    """The budget rows as bars, ball by ball."""
    found, n = [], results.dataset.n
    for eps in dict.fromkeys(row.eps for row in results.attacks if row.eps is not None):
        rows = [row for row in results.attacks if row.eps == eps]
        done = [row for row in rows if row.robust_accuracy is not None]
        worst = next((case for case in results.worst_case if case.eps == eps), None)
        least = min((row.robust_accuracy or 0.0 for row in done if row.n == n), default=None)
        strong = [row.name for row in done if row.robust_accuracy == least and row.n == n]
        bars = [_bar(row, results, least) for row in done[:MOST_ROWS]]
        if worst and len(done) > 1:
            bars.append(Bar("all together", worst.robust_accuracy, worst.ci95, strong=True))
        notes = []
        if strong and len(done) > len(strong):
            verb = "is the strongest" if len(strong) == 1 else "are the strongest"
            seen = " that saw all images" if any(row.n < n for row in done) else ""
            notes.append(f"{listed(strong, most=3)} {verb}{seen}.")
        if worst and least is not None and worst.robust_accuracy < least:
            notes.append(f"Together they leave {percent(worst.robust_accuracy)}: no single one breaks all of these.")
        if left_out := [row for row in rows if row.status != "done"]:
            notes.append(f"{count(len(left_out), 'row')} without a result: see below.")
        if len(done) > MOST_ROWS:
            notes.append(f"{len(done) - MOST_ROWS:,} more are in results.json.")
        found.append(Radius(eps_text(eps), bars, " ".join(notes)))
    return found


def _bar(row: Attack, results: Results, least: float | None) -> Bar:
    whole = row.n == results.dataset.n
    detail = "" if whole else f"of the first {row.n:,} images"
    share = row.robust_accuracy or 0.0
    return Bar(row.name if row.surrogate is None else row.names[0], share, row.ci95, whole and share == least, detail)


def unlimited(evidence: Evidence) -> list[tuple[Attack, str]]:
    """Rows that look for the nearest adversarial image, and how many images they tried."""
    results, samples = evidence.results, evidence.samples
    found = []
    for row in results.attacks:
        if row.eps is None and row.status == "done":
            tried = results.clean.correct if row.n == results.dataset.n else None
            if samples is not None:
                tried = int((samples.clean_pred == samples.label)[: row.n].sum())
            found.append((row, "" if tried is None else f"{tried:,}"))
    return found[:MOST_ROWS]


def without_result(results: Results) -> list[Attack]:
    """Rows that were skipped or failed."""
    return [row for row in results.attacks if row.status != "done"]


def stages(results: Results) -> list[Stages]:
    """What became of all images, stage by stage, of each ensemble that saw them all at the main radius."""
    case, found = main_case(results), []
    for row in results.attacks:
        whole = row.robust is not None and row.n == results.dataset.n == results.clean.n
        if not row.stages or not whole or row.robust is None or (case and row.eps != case.eps):
            continue
        wrong, broken = row.n - results.clean.correct, sum(stage.broken for stage in row.stages)
        parts = [Part("wrong before any attack", wrong, "wrong")] if wrong else []
        for place, stage in enumerate(row.stages, start=1):
            style = f"broke{min(place, 4)}"
            parts.append(Part(f"broken by {stage.name}", stage.broken, style, duration(stage.seconds)))
        if (rest := row.n - wrong - broken - row.robust) > 0:
            parts.append(Part("broken, and no stage says so", rest, "broke4"))
        parts.append(Part("still right", row.robust, "held"))
        said = f"Of {count(row.n, 'image')}: " + "; ".join(f"{part.n:,} {part.text}" for part in parts if part.n)
        first = max(row.stages, key=lambda stage: stage.broken)
        if first.broken > broken / 2:
            said += f". {first.name} did most of it"
        found.append(Stages(row.id, parts, f"{said}."))
    return found


def against_eps(results: Results) -> Chart | None:
    """Robust accuracy against eps, from clean accuracy at 0; None for a single radius."""
    cases = sorted(results.worst_case, key=lambda case: case.eps)
    if len(cases) < 2:
        return None
    start = (0.0, results.clean.accuracy)
    worst = Line(
        "all together",
        [start, *((case.eps, case.robust_accuracy) for case in cases)],
        ends=[start[1:] * 2, *(case.ci95 for case in cases)],
        texts=[
            f"clean: {percent(start[1])}",
            *(f"{eps_text(case.eps)}: {percent(case.robust_accuracy)}" for case in cases),
        ],
        values=[f"{100 * share:.0f}" for share in (start[1], *(case.robust_accuracy for case in cases))],
    )
    lines = [worst]
    for name in dict.fromkeys(row.name for row in results.attacks if row.surrogate is None):
        rows = [
            row for row in results.attacks if row.name == name and row.surrogate is None and row.n == results.dataset.n
        ]
        shares = sorted(
            (row.eps, row.robust_accuracy) for row in rows if row.eps is not None and row.robust_accuracy is not None
        )
        if len(shares) > 1 and len(lines) < 5:
            lines.append(Line(name, [start, *shares]))
    ticks = _spread([(0.0, "0"), *((case.eps, eps_text(case.eps)) for case in cases)])
    x = Axis(f"eps ({cases[0].norm.capitalize()}, as a fraction of the pixel range)", 0.0, cases[-1].eps, ticks)
    told = ", ".join(f"{percent(case.robust_accuracy)} at {eps_text(case.eps)}" for case in cases)
    y = Axis("still right", PERCENT.low, PERCENT.high, PERCENT.ticks)
    return line_chart(lines, x, y, alt=f"Robust accuracy against eps: {percent(start[1])} clean, {told}")


def _spread(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The ticks without those that would touch the one before."""
    kept, span = ticks[:1], ticks[-1][0] - ticks[0][0]
    for _, (at, text) in pairwise(ticks):
        if at - kept[-1][0] >= 0.12 * span:
            kept.append((at, text))
    return kept


def transfer(results: Results) -> list[Heat]:
    """What examples made on other models broke, one heat map per radius: surrogates down, attacks across."""
    rows = [row for row in results.attacks if row.source == "transfer" and row.eps is not None][:MOST_ROWS]
    found = []
    for eps in dict.fromkeys(row.eps for row in rows):
        here = {(row.surrogate, row.name): row for row in rows if row.eps == eps}
        surrogates, names = list(dict.fromkeys(key[0] for key in here)), list(dict.fromkeys(key[1] for key in here))
        lines = [(str(each), [share_broken(here.get((each, name))) for name in names]) for each in surrogates]
        found.append(Heat(f"made on, at {eps_text(eps)}", names, lines))
    return found


def share_broken(row: Attack | None) -> Cell:
    """The share of right images that a row broke, as a cell."""
    if row is None or row.success is None:
        return Cell(row.status if row else "not run", None)
    return Cell(percent(row.success), row.success)


_PAPER = {
    "clean": ("clean", ""),
    "fgsm": ("FGSM", "fgsm"),
    "pgd": ("PGD", "pgd"),
    "cw": ("CW", "cw2-paper"),
    "aa": ("AutoAttack", "autoattack"),
}
"""Figures that papers print: what they are called, and the row that answers the same question."""


def printed(evidence: Evidence) -> list[Printed]:
    """The paper's figures, where the model's record has them, beside those found at the radius it was trained for."""
    results = evidence.results
    paper = paper_of(results)
    case, figures = main_case(results), paper.get("figures")
    found = []
    for key, (label, name) in _PAPER.items():
        value = number(figures.get(key)) if isinstance(figures, dict) else None
        if value is None:
            continue
        rows = [
            row
            for row in results.attacks
            if row.name == name and row.surrogate is None and row.status == "done" and row.n == results.dataset.n
        ]
        own = next((row for row in rows if row.eps is None or (case and row.eps == case.eps)), None)
        here = results.clean.accuracy if key == "clean" else None
        if own is not None:
            here = own.accuracy if own.robust_accuracy is None else own.robust_accuracy
        found.append(Printed(label, value / 100, here, "" if key == "clean" or own is None else own.id))
    return found


def paper_of(results: Results) -> dict[str, object]:
    """What the model's record says of a paper; empty for nothing."""
    paper = recorded(results, "training").get("paper")
    return paper if isinstance(paper, dict) else {}
