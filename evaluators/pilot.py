"""What an evaluation will cost: the real rows are run on a few images, and their seconds are extrapolated."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dgad_tk.common import UserError
from dgad_tk.data import Split
from dgad_tk.distributed import leaders, world
from dgad_tk.predictor import Predictor
from dgad_tk.shares import wilson
from evaluators.evaluate import CHUNK, Progress, evaluate
from evaluators.rows import Row

FEWEST, GROWTH, MOST = 16, 4, 256
"""Images of the first run, how many times as many the next one has, and the most."""
SECONDS = 4.0
"""Another run follows only where all before it took less than this."""
LEAST_SHARE = 0.5
"""An image costs a row at least this share of the largest run's average: two noisy times may say nothing."""
LARGEST_STEP = 100
BEFORE = "clean, checks"


@dataclass(frozen=True)
class RowForecast:
    """What one row, or what comes before all rows, will cost.

    Attributes:
        id: of the row.
        once: seconds that are spent once.
        chunk: seconds of each chunk, however few images are in it.
        image: seconds of each image.
        limit: only so many images are attacked; None for all.
        note: why the row took no time: it was skipped or failed. Empty otherwise.
    """

    id: str
    once: float = 0.0
    chunk: float = 0.0
    image: float = 0.0
    limit: int | None = None
    note: str = ""

    def images(self, n: int) -> int:
        """How many of `n` images the row attacks or looks at."""
        return 0 if self.note else min(n, self.limit or n)

    def seconds(self, n: int) -> float:
        """Seconds for `n` images, in one process."""
        images = self.images(n)
        return self.once + self.chunk * math.ceil(images / CHUNK) + self.image * images


@dataclass(frozen=True)
class Forecast:
    """What an evaluation of any number of images will cost.

    Attributes:
        rows: in their order, after what comes before them.
        shares: clean accuracy, and the robust accuracy at each radius.
        images: of the pilot's largest run.
        step: numbers of images to choose from are multiples of this.
        batch_size: images at a time.
        processes: that share the work.
    """

    rows: tuple[RowForecast, ...]
    shares: tuple[float, ...]
    images: int
    step: int
    batch_size: int
    processes: int

    def seconds(self, n: int) -> float:
        """Seconds for `n` images, with all processes at work."""
        return sum(row.seconds(n) for row in self.rows) / self.processes

    def affordable(self, seconds: float, most: int) -> int:
        """The largest number of images that can be expected to be done in time: a multiple of `step`, or `most`.

        Raises:
            UserError: the time is not enough for the first step.
        """
        step = min(self.step, most)
        fitting: list[int] = [n for n in (*range(step, most, step), most) if self.seconds(n) <= seconds]
        if not fitting:
            raise UserError(
                f"a budget of {seconds:g} s is too little: {step} images take about "
                f"{math.ceil(self.seconds(step)):,} s",
                hint="raise --budget, or ask for fewer attacks",
            )
        return max(fitting)

    def half_width(self, n: int) -> float:
        """Half of the 95 % Wilson interval that `n` images give, a fraction of 1: the widest of all `shares`."""
        ends = [wilson(round(share * n), n) for share in self.shares]
        return max(high - low for low, high in ends) / 2

    def to_dict(self, n: int) -> dict[str, Any]:
        """The forecast for `n` images, ready for JSON."""
        return {
            "n": n,
            "pilot_images": self.images,
            "batch_size": self.batch_size,
            "processes": self.processes,
            "half_width": self.half_width(n),
            "seconds": self.seconds(n),
            "rows": [
                {"id": row.id, "images": row.images(n), "seconds": row.seconds(n) / self.processes, "note": row.note}
                for row in self.rows
            ],
        }


def pilot(
    predictor: Predictor,
    split: Split,
    rows: Sequence[Row],
    *,
    batch_size: int,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Forecast:
    """Run `rows` on the first images of `split`, whose order is stratified, then on more while that is quick.

    Started by torchrun, all processes run it together; their forecasts differ by what they measured.

    Raises:
        UserError: what `evaluate` raises.
    """
    runs: list[tuple[int, dict[str, float]]] = []
    begun, images = time.perf_counter(), min(FEWEST, len(split))
    while True:
        start = time.perf_counter()
        done = evaluate(
            predictor, split.subset(images), rows, seed=seed, batch_size=batch_size, on_progress=on_progress
        )
        seconds = {outcome.row.id: outcome.unit.seconds for outcome in done.outcomes if outcome.unit is not None}
        # Seconds of rows are of one process each, and the processes work at the same time.
        elapsed = (time.perf_counter() - start) * world().size
        runs.append((images, {BEFORE: max(0.0, elapsed - sum(seconds.values())), **seconds}))
        if images == min(MOST, len(split)) or leaders(time.perf_counter() - begun) > SECONDS:
            break
        images = min(GROWTH * images, MOST, len(split))
    once, image = _line(runs, BEFORE, None, least=0.0)  # the checks look at a fixed number of images
    forecasts = [RowForecast(BEFORE, once=once, image=image)]
    for outcome in done.outcomes:
        row, note = outcome.row, f"{outcome.status}: {outcome.reason}" if outcome.unit is None else ""
        chunk, image = (0.0, 0.0) if note else _line(runs, row.id, row.limit, least=LEAST_SHARE)
        forecasts.append(RowForecast(row.id, chunk=chunk, image=image, limit=row.limit, note=note))
    robust = [done.worst_case(eps) for eps in done.eps if any(done.judges(outcome, eps) for outcome in done.outcomes)]
    step = min(predictor.classes, LARGEST_STEP)
    return Forecast(tuple(forecasts), (done.clean_accuracy, *robust), images, step, done.batch_size, world().size)


def _line(
    runs: Sequence[tuple[int, dict[str, float]]], name: str, limit: int | None, *, least: float
) -> tuple[float, float]:
    """A fixed number of seconds, and the seconds of each image: the line through a row's two largest runs.

    Args:
        least: share of the average that an image costs at least. After a single run, 0 takes all seconds for fixed
            ones, and any other share takes none of them for fixed.
    """
    times = {min(images, limit or images): seconds[name] for images, seconds in runs if name in seconds}
    (most, longest), *others = sorted(times.items(), reverse=True)
    average = longest / most
    slope = (longest - others[0][1]) / (most - others[0][0]) if others else average if least else 0.0
    image = min(average, max(least * average, slope))
    return longest - most * image, image
