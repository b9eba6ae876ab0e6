"""`--dry-run` and `--budget` of `dgad attack`: what an evaluation will cost, as a table and in a sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.printing.progress import duration
from cli.printing.terminal import Heading, plain_table, say

if TYPE_CHECKING:
    from evaluators.engine.forecast import Forecast


def plan_table(plans: "Sequence[tuple[Path, Forecast, int]]", *, budget: float | None = None) -> None:
    """Print one table for all models, and for each what else could be asked.

    Args:
        plans: path, forecast, and number of images of each model.
        budget: seconds, to recommend one of these by.
    """
    lines, notes = [], []
    for path, forecast, n in plans:
        for row in forecast.rows:
            if row.note:
                notes.append(f"{path}: {row.id} {row.note}")
            else:
                time = _time(row.seconds(n) / forecast.processes, rough=row.rough)
                lines.append([str(path), row.id, f"{row.images(n):,}", time])
        rough = any(row.rough for row in forecast.rows)
        lines.append([str(path), "total", f"{n:,}", _time(forecast.seconds(n), rough=rough)])
    plain_table(["model", "attack", "images", "time"], lines, left=2)
    for note in [*notes, *(f"{path}: {summary(forecast, n)}" for path, forecast, n in plans)]:
        say(note)
    for path, forecast, n in plans:
        if forecast.offers:
            _choices(path, forecast, n, budget)


def _choices(path: Path, forecast: "Forecast", n: int, budget: float | None) -> None:
    """What else could be asked of a model: its price in a table, what it says below, and what fits the budget."""
    print()
    counts = [n if budget is None else forecast.within(offer, budget) for offer in forecast.offers]
    lines = []
    for offer, count in zip(forecast.offers, counts, strict=True):
        time = _time(forecast.offered(offer, count), rough=offer.rough) if count else "more than that"
        width = f"±{100 * forecast.half_width(count):.1f}" if count else ""
        lines.append([offer.name, " ".join(offer.choice.ask), f"{count:,}", time, width, f"{offer.passes:,}"])
    names: list[Heading] = ["choice", "flags", "images", "time", "points", ("passes an image", "passes")]
    plain_table(names, lines, left=2)
    for offer in forecast.offers:
        say(f"{offer.name} says: {offer.choice.says}", indent=4)
        say(f"  it does not see: {offer.choice.blind}", indent=4)
    say("points: half of the 95 % interval; passes: of an image that nothing breaks, a gradient counted twice")
    if budget is None:
        return
    if (advice := forecast.recommended(budget)) is None:
        say(f"{path}: none of them fits into {duration(budget)}")
        return
    offer, count = advice
    ask = " ".join([*offer.choice.ask, *([] if count == forecast.most else ["--limit", str(count)])])
    images = "all" if count == forecast.most else "the first"
    say(f"{path}: within {duration(budget)} take {offer.name} on {images} {count:,} images: {ask}")


def summary(forecast: "Forecast", n: int) -> str:
    """How many images, how long, and how sure the result will be."""
    seconds = forecast.seconds(n)
    priced = any(row.rough for row in forecast.rows)
    ran = any(not row.rough and not row.note for row in forecast.rows[1:])
    how = f"extrapolated from {forecast.images:,}"
    if priced:
        how = f"{how}, or by passes (~)" if ran else "by passes"
    return (
        f"{n:,} images in {'about ' if seconds >= 1 else ''}{_time(seconds)}, {how}: "
        f"shares to ±{forecast.half_width(n) * 100:.1f} points (95 % Wilson interval)"
    )


def _time(seconds: float, *, rough: bool = False) -> str:
    """A time for people; `~` before one that was not measured."""
    return f"{'~' * rough}{duration(seconds)}" if seconds >= 1 or seconds == 0 else "under 1 s"
