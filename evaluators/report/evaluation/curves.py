"""Robust accuracy against eps, drawn from the distances of one search, with AutoAttack's points on it."""

from dataclasses import dataclass
from itertools import pairwise

from dgad_tk.strangers.number_text import format_fraction
from evaluators.curves import MOST_STEPS, Curve
from evaluators.report.pages.charts import PERCENT, Axis, Chart, Line, line_chart, round_numbers
from evaluators.report.pages.words import brief, count, listed, name, percent
from evaluators.results import Results

MOST_CURVES, MOST_EXACT = 4, 40
GREY_LEVELS = 0.2
"""Up to this radius in Linf, round radii are whole multiples of 1/255."""


@dataclass(frozen=True)
class Curved:
    """A curve as a chart, and what it says."""

    title: str
    chart: Chart
    said: str


def curves(results: Results) -> list[Curved]:
    """The curves of `results.curves`, a chart each."""
    return [_curved(curve) for curve in results.curves[:MOST_CURVES]]


def round_radii(curve: Curve, about: int) -> list[float]:
    """Some `about` round radii from 0 to where the curve has come down."""
    reach = _reach(curve)
    levels = curve.norm == "linf" and reach <= GREY_LEVELS and all(map(_is_level, curve.exact_radii))
    unit = 255 if levels else 1
    found = [each / unit for each in round_numbers(0.0, reach * unit, about)]
    return [each for each in found if each.is_integer()] if curve.norm == "l0" else found


def _is_level(eps: float) -> bool:
    return abs(eps * 255 - round(eps * 255)) < 1e-6


def _reach(curve: Curve) -> float:
    return max([curve.reach, *curve.exact_radii]) or 1.0


def _curved(curve: Curve) -> Curved:
    reach, norm = _reach(curve), curve.norm.capitalize()
    stride = -(-len(curve.steps) // MOST_STEPS)  # a stranger's file may have any number
    stairs = [(0.0, curve.steps[0].robust / curve.n)]
    for before, after in pairwise(curve.steps[::stride]):
        stairs += [(min(after.eps, reach), before.robust / curve.n), (min(after.eps, reach), after.robust / curve.n)]
        if after.eps >= reach:
            break
    else:
        stairs.append((reach, stairs[-1][1]))
    lines = [Line(f"{brief(curve.row, 40)}: at most so many are still right", stairs)]
    told = f"{percent(stairs[0][1])} of {count(curve.n, 'image')} are right when clean"
    half = next((each.eps for each in curve.steps if 2 * each.robust <= curve.steps[0].robust), None)
    if half is not None:
        told += f"; half of those have fallen by {half:.3g}"
    if exact := curve.exact[:MOST_EXACT]:
        points = [(point.eps, point.robust_accuracy) for point in exact]
        lines.append(
            Line(
                "AutoAttack at this radius, with 95 % interval",
                points,
                ends=[point.ci95 for point in exact],
                texts=[f"{name(point.row)}: {percent(point.robust_accuracy)}" for point in exact],
                values=[f"{100 * point.robust_accuracy:.0f}" for point in exact],
                joined=False,
            )
        )
        found = [f"{percent(share)} at {format_fraction(eps)}" for eps, share in points]
        told += f"; AutoAttack leaves {listed(found, most=4)}"
    ticks = [(each, format_fraction(each) if each else "0") for each in round_radii(curve, about=5)]
    unit = "values that may change, of all channels" if curve.norm == "l0" else f"eps, {name(norm)}"
    x = Axis(unit, 0.0, reach, ticks)
    y = Axis("still right", PERCENT.low, PERCENT.high, PERCENT.ticks)
    chart = line_chart(lines, x, y, alt=f"Upper bound of robust accuracy against eps in {norm}: {told}.")
    return Curved(f"{norm}, from one run of {brief(curve.row, 40)}", chart, f"{told[:1].upper()}{told[1:]}.")
