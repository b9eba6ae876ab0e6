"""Curves of a run: one chart a question, since loss terms, shares and rates have no common scale."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evaluators.report.pages import words
from evaluators.report.pages.charts import PERCENT, Axis, Chart, Line, Point, line_chart, round_numbers, thinned
from evaluators.report.pages.words import duration, percent
from evaluators.report.runs.record import Run
from evaluators.report.runs.terms import meaning

SHARES = {"teacher_wrong": "training images that the teacher gets wrong"}
"""Terms of a method that are shares of the images, and of what."""

SPLITS = {"val": "validation", "test": "test"}
"""Names of the splits that can choose the best epoch."""

_NO_TERM = {"lr", "accuracy", "samples_per_second", "seconds", *SHARES}

Say = Callable[[float], str]
"""A value as a reader sees it."""


@dataclass(frozen=True)
class Curve:
    """A chart with its heading and what it shows in a sentence.

    Attributes:
        meaning: what is drawn, where the heading is a term of the loss.
    """

    title: str
    chart: Chart
    caption: str
    meaning: str = ""


def validation(run: Run) -> Curve | None:
    """Clean and robust accuracy on the split that chooses the best epoch; None before any was measured."""
    on = run.config.select_on
    measured = {"clean": run.series(f"{on}_clean"), "under attack": run.series(f"{on}_robust")}
    if not any(measured.values()):
        return None
    caption = " ".join(f"{name.capitalize()}: {_ends(run.best, points, percent)}" for name, points in measured.items())
    lines = [Line(name, thinned(_finite(measured[name]))) for name in ("under attack", "clean")]
    y = Axis(f"accuracy on the {SPLITS[on]} images", PERCENT.low, PERCENT.high, PERCENT.ticks)
    chart = line_chart(lines, _epochs(run), y, alt=f"Accuracy by epoch. {caption}", guides=_best(run))
    return Curve("On images that are not trained on", chart, caption)


def training(run: Run) -> Curve | None:
    """Accuracy in the training steps; None for a run that did not measure it."""
    points = run.series("accuracy")
    y = Axis("accuracy in the training steps", PERCENT.low, PERCENT.high, PERCENT.ticks)
    return _curve(run, points, "On the training images, as the step saw them", y, percent) if points else None


def losses(run: Run) -> list[Curve]:
    """The loss, then each of its terms as the method names them."""
    names = dict.fromkeys(name for epoch in run.epochs for name in epoch.values)
    terms = [name for name in names if name not in _NO_TERM and not name.startswith(("val_", "test_"))]
    terms.sort(key=lambda name: name != "loss")
    drawn = {name: _scaled(run, name, name, "mean over the images", _figure) for name in terms}
    return [replace(curve, meaning=meaning(run.config.method, name)) for name, curve in drawn.items()]


def shares(run: Run) -> list[Curve]:
    """Shares of the training images that the method watches."""
    found = []
    for name, of_what in SHARES.items():
        if points := run.series(name):
            highest = max((value for _, value in _finite(points)), default=0.0)
            top = next((each for each in (0.05, 0.1, 0.25, 0.5) if highest <= each), 1.0)
            ticks = [(top * part / 5, f"{20 * part * top:g} %") for part in range(6)]
            axis = Axis("share of the training images", 0.0, top, ticks)
            found.append(_curve(run, points, f"{of_what[0].upper()}{of_what[1:]}", axis, percent))
    return found


def pace(run: Run) -> list[Curve]:
    """The learning rate, and the time of an epoch."""
    wanted = (
        ("lr", "Learning rate", "at the epoch's last step", _figure),
        ("seconds", "Time of an epoch, validation included", "seconds", duration),
    )
    return [_scaled(run, *each, judged=False) for each in wanted if run.series(each[0])]


def _scaled(run: Run, name: str, title: str, unit: str, say: Say, *, judged: bool = True) -> Curve:
    """A chart from 0, or from the lowest value where that is below 0, to a round number above the highest."""
    points = run.series(name)
    values = [0.0, *(value for _, value in _finite(points))]
    low, high = min(values), max(values)
    if not 0 < high - low < math.inf:
        low, high = min(low, 0.0), low + 1.0
    ticks = round_numbers(low, high)
    step = ticks[1] - ticks[0]
    if ticks[0] > low:
        ticks.insert(0, ticks[0] - step)
    if ticks[-1] < high:
        ticks.append(ticks[-1] + step)
    return _curve(
        run, points, title, Axis(unit, ticks[0], ticks[-1], [(at, f"{at:.4g}") for at in ticks]), say, judged=judged
    )


def _curve(run: Run, points: Sequence[Point], title: str, y: Axis, say: Say, *, judged: bool = True) -> Curve:
    """A chart of one line; `judged` marks the best epoch."""
    best = run.best if judged else None
    caption = _ends(best, points, say)
    if lost := len(points) - len(_finite(points)):
        caption += f" In {lost} epoch{'s' if lost > 1 else ''} it was not finite."
    title = words.name(title)
    lines = [Line(title, thinned(_finite(points)))]
    alt = f"{title}, by epoch. {caption}"
    return Curve(title, line_chart(lines, _epochs(run), y, alt=alt, guides=_best(run) if judged else ()), caption)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point[1])]


def _ends(best: int | None, points: Sequence[Point], say: Say) -> str:
    """The first value, that of the best epoch, and the last."""
    finite = {int(at): value for at, value in _finite(points)}
    if not finite:
        return "No value is finite." if points else "Not measured."
    first, last = min(finite), max(finite)
    wanted = {first: f"in epoch {first}", last: f"in epoch {last}"}
    if best in finite:
        wanted[best] = f"in epoch {best}, the best"
    return ", ".join(f"{say(finite[at])} {wanted[at]}" for at in sorted(wanted)) + "."


def _epochs(run: Run) -> Axis:
    """From the first epoch to the last one planned, or to the last one done where the run has ended."""
    done = run.epochs[-1].number if run.epochs else 1
    last = max(done, 2) if run.finished else max(done, run.config.epochs, 2)
    ticks = [int(at) for at in round_numbers(0, last) if at == int(at) and at > 0]
    return Axis("epoch", 1.0, float(last), [(at, f"{at:,}") for at in dict.fromkeys([1, *ticks])])


def _best(run: Run) -> list[tuple[float, str]]:
    known = {epoch.number for epoch in run.epochs}
    return [(float(run.best), f"best: epoch {run.best}")] if run.best is not None and run.best in known else []


def _figure(value: float) -> str:
    return f"{value:.4g}"
