"""`--dry-run` and `--budget` of `dgad attack`: what an evaluation will cost, as a table and in a sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.printing.progress import duration
from cli.printing.terminal import plain_table, say

if TYPE_CHECKING:
    from evaluators.engine.pilot import Forecast


def plan_table(plans: "Sequence[tuple[Path, Forecast, int]]") -> None:
    """Print one table for all models.

    Args:
        plans: path, forecast, and number of images of each model.
    """
    lines, notes = [], []
    for path, forecast, n in plans:
        for row in forecast.rows:
            if row.note:
                notes.append(f"{path}: {row.id} {row.note}")
            else:
                lines.append([str(path), row.id, f"{row.images(n):,}", _time(row.seconds(n) / forecast.processes)])
        lines.append([str(path), "total", f"{n:,}", _time(forecast.seconds(n))])
    plain_table(["model", "attack", "images", "time"], lines, left=2)
    for note in [*notes, *(f"{path}: {summary(forecast, n)}" for path, forecast, n in plans)]:
        say(note)


def summary(forecast: "Forecast", n: int) -> str:
    """How many images, how long, and how sure the result will be."""
    seconds = forecast.seconds(n)
    return (
        f"{n:,} images in {'about ' if seconds >= 1 else ''}{_time(seconds)}, extrapolated from {forecast.images:,}: "
        f"shares to ±{forecast.half_width(n) * 100:.1f} points (95 % Wilson interval)"
    )


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 or seconds == 0 else "under 1 s"
