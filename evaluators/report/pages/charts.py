"""Charts whose geometry needs SVG: lines over an axis, and histograms. Bars and dots are HTML, which reflows.

A chart is 380 units wide, so that its text is as large as the page's on a phone. Lines differ by dash as well as by
colour. What a chart shows is also said in its text alternative.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from evaluators.report.pages.render import part

WIDTH, HEIGHT = 380, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 40, 38
MOST_POINTS = 400
"""Points of a line. More would not show."""
MOST_DOTS = 12
"""Points of a line that get a dot each."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        points: x and y, ascending in x. A y that is not finite leaves a gap.
        ends: lower and upper end of an interval at each point; empty for none.
        texts: what each point says; empty for x and y.
        values: a text beside each point, where there are few of them.
        joined: the points are joined by a line.
    """

    name: str
    points: Sequence[Point]
    ends: Sequence[Point] = ()
    texts: Sequence[str] = ()
    values: Sequence[str] = ()
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """An axis: its title with the unit, and where it begins and ends.

    Attributes:
        ticks: positions and their texts; empty chooses round numbers.
    """

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]] = ()

    @property
    def marked(self) -> list[tuple[float, str]]:
        """The ticks, chosen where none are given."""
        return list(self.ticks) or [(at, f"{at:.10g}") for at in round_numbers(self.low, self.high)]

    def place(self, value: float, start: float, end: float) -> float:
        """Where `value` lies between the pixels `start` and `end`."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(start + share * (end - start), 1)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Dot:
    """A point of a line, and a value that stands beside it."""

    x: float
    y: float
    text: str
    shown: str = ""
    label: float = 0.0
    anchor: str = "middle"


@dataclass(frozen=True)
class Ends:
    """An interval at a point."""

    x: float
    low: float
    high: float


@dataclass(frozen=True)
class Drawn:
    """A line in pixels."""

    name: str
    style: int
    path: str
    ends: Sequence[Ends] = ()
    dots: Sequence[Dot] = ()

    @property
    def joined(self) -> bool:
        """Whether there is a line."""
        return bool(self.path) or not self.dots


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram in pixels."""

    x: float
    y: float
    width: float
    height: float
    style: int
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart in pixels; `svg` is its markup."""

    alt: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Drawn] = ()
    bars: Sequence[Bar] = ()
    guides: Sequence[Tick] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM

    @property
    def svg(self) -> Markup:
        return part("chart.svg.html", c=self)


PERCENT = Axis("per cent", 0.0, 1.0, [(share / 4, f"{25 * share} %") for share in range(5)])
"""Shares from 0 to 1."""


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, *, alt: str, guides: Sequence[tuple[float, str]] = ()) -> Chart:
    """Lines over a common axis.

    Args:
        alt: what the chart shows, in words.
        guides: dashed vertical lines: x, and a text above.
    """
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    drawn = []
    for style, line in enumerate(lines):
        places = [(x.place(at, left, right), _clipped(y, value, bottom, top)) for at, value in line.points]
        ends = [
            Ends(places[number][0], _clipped(y, low, bottom, top), _clipped(y, high, bottom, top))
            for number, (low, high) in enumerate(line.ends)
        ]
        path = _path(places) if line.joined else ""
        drawn.append(Drawn(line.name, style % 5, path, ends, _dots(line, places, [each.low for each in ends])))
    marks = [Tick(x.place(at, left, right), text, _anchor(x.place(at, left, right))) for at, text in guides]
    return Chart(alt, x.title, y.title, *_ticks(x, y), lines=drawn, guides=marks)


def histogram(
    groups: Sequence[Sequence[float]], x: Axis, *, bins: int, alt: str, noun: str = "images",
    guides: Sequence[tuple[float, str]] = (),
) -> Chart:  # fmt: skip
    """Numbers of values per bin; several groups are stacked. Values outside the axis count at its end.

    Args:
        groups: values of each group.
        noun: what is counted.
    """
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    counts = [_binned(group, x, bins) for group in groups]
    highest = max((sum(column) for column in zip(*counts, strict=True)), default=0)
    ticks = round_numbers(0, max(highest, 1))
    y = Axis(f"number of {noun}", 0, max(highest, ticks[-1]), [(at, f"{at:,.0f}") for at in ticks if at == int(at)])
    width, bars = (right - left) / bins, []
    for number in range(bins):
        base = 0
        low, high = (x.low + (x.high - x.low) * (number + step) / bins for step in (0, 1))
        for style, column in enumerate(counts):
            if not column[number]:
                continue
            upper, lower = (y.place(value, bottom, top) for value in (base + column[number], base))
            text = f"{low:.3g} to {high:.3g}: {column[number]:,} {noun}"
            bars.append(
                Bar(
                    round(left + number * width + 0.5, 1),
                    upper,
                    round(width - 1, 1),
                    round(lower - upper, 1),
                    style,
                    text,
                )
            )
            base += column[number]
    marks = [Tick(x.place(at, left, right), text, _anchor(x.place(at, left, right))) for at, text in guides]
    return Chart(alt, x.title, y.title, *_ticks(x, y), bars=bars, guides=marks)


def round_numbers(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, some `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * number, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points, the first and the last among them."""
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _ticks(x: Axis, y: Axis) -> tuple[list[Tick], list[Tick]]:
    across = []
    for at, text in x.marked:
        place = x.place(at, LEFT, WIDTH - RIGHT)
        across.append(Tick(place, text, "end" if place > WIDTH - RIGHT - 10 else "middle"))
    up = [Tick(y.place(at, HEIGHT - BOTTOM, TOP), text) for at, text in y.marked]
    return across, up


def _anchor(at: float) -> str:
    """Which way a text goes from `at` so that it stays inside."""
    return "start" if at < LEFT + 60 else "end" if at > WIDTH - RIGHT - 60 else "middle"


def _clipped(axis: Axis, value: float, start: float, end: float) -> float:
    return axis.place(min(max(value, axis.low), axis.high), start, end) if math.isfinite(value) else math.nan


def _path(places: Sequence[Point]) -> str:
    """An SVG path. Where a value is not finite the line has a gap."""
    found, pen = [], "M"
    for x, y in places:
        if math.isnan(y):
            pen = "M"
        else:
            found.append(f"{pen}{x} {y}")
            pen = "L"
    return "".join(found)


def _dots(line: Line, places: Sequence[Point], lowest: Sequence[float]) -> list[Dot]:
    """The points of a line that has few; `lowest` is where their intervals end."""
    if len(places) > MOST_DOTS:
        return []
    dots = []
    for number, ((x, y), (at, value)) in enumerate(zip(places, line.points, strict=True)):
        if math.isnan(y):
            continue
        text = line.texts[number] if line.texts else f"{at:.4g}: {value:.4g}"
        shown = line.values[number] if line.values else ""
        anchor = "start" if x < LEFT + 8 else "end" if x > WIDTH - RIGHT - 24 else "middle"
        label = (lowest[number] if lowest else y) + 17
        dots.append(Dot(x, y, f"{line.name}, {text}", shown, label if label < HEIGHT - BOTTOM - 4 else y - 9, anchor))
    return dots


def _binned(values: Sequence[float], axis: Axis, bins: int) -> list[int]:
    found = [0] * bins
    for value in values:
        share = (value - axis.low) / ((axis.high - axis.low) or 1.0)
        found[min(max(int(share * bins), 0), bins - 1)] += 1
    return found
