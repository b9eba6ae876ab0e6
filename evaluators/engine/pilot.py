"""Forecasts what an evaluation will cost: it runs the rows on a few images, and extrapolates their seconds.

A row that would be dear even on a few images is not run. Its price is that of its passes.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dgad_tk.answers.doubts import wilson
from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.common import UserError
from dgad_tk.config.threat import Norm
from dgad_tk.data import Split
from dgad_tk.distributed import leaders, world
from evaluators.attacks import ATTACKS
from evaluators.attacks.passes import Passes
from evaluators.engine.evaluate import CHUNK, Progress, evaluate
from evaluators.engine.prices import Price, passes_of, price_of, shares_left
from evaluators.plan.choices import Choice, choices_in, recommended
from evaluators.plan.rows import Row

FEWEST, GROWTH, MOST = 8, 4, 512
"""Images of the first run, the factor from one run to the next, and the most images."""
SECONDS = 4.0
"""A third run, and each after it, follows only if all runs before it took less than this together."""
DEAR = 2.0
"""Seconds of a row's first run above which it is priced and not run."""
LEAST_SHARE = 0.05
"""An image costs at least this share of the largest run's average. From two noisy times it could cost nothing."""
LARGEST_STEP = 100
BEFORE = "clean, checks"


@dataclass(frozen=True)
class RowForecast:
    """What one row will cost. BEFORE is the row of what comes before all attacks.

    Attributes:
        once: seconds that are spent once.
        chunk: seconds per chunk, besides its images.
        image: seconds per image.
        limit: only so many images are attacked; None for all.
        note: why the row was skipped or failed; it then costs nothing.
        rough: priced by its passes, and not run.
    """

    id: str
    once: float = 0.0
    chunk: float = 0.0
    image: float = 0.0
    limit: int | None = None
    note: str = ""
    rough: bool = False

    def images(self, n: int) -> int:
        """How many of `n` images the row attacks."""
        return 0 if self.note else min(n, self.limit or n)

    def seconds(self, n: int) -> float:
        """Seconds for `n` images, in one process."""
        images = self.images(n)
        return self.once + self.chunk * math.ceil(images / CHUNK) + self.image * images


@dataclass(frozen=True)
class Offer:
    """One of CHOICES, and what it would cost.

    Attributes:
        passes: of an image that nothing breaks, a gradient counted twice; at one radius.
        image: seconds per image at all radii, in one process.
    """

    name: str
    choice: Choice
    passes: int
    image: float


@dataclass(frozen=True)
class Forecast:
    """What an evaluation of any number of images will cost.

    Attributes:
        rows: BEFORE, then the rows in their order.
        shares: clean accuracy, and the robust accuracy at each radius.
        images: of the pilot's largest run.
        step: `affordable` gives a multiple of this.
        batch_size: images at a time.
        processes: that share the work.
        offers: what else could be asked, from the cheapest to the strongest.
        most: images that there are.
    """

    rows: tuple[RowForecast, ...]
    shares: tuple[float, ...]
    images: int
    step: int
    batch_size: int
    processes: int
    offers: tuple[Offer, ...] = ()
    most: int = 0

    def seconds(self, n: int) -> float:
        """Seconds for `n` images, with all processes at work."""
        return sum(row.seconds(n) for row in self.rows) / self.processes

    def offered(self, offer: Offer, n: int) -> float:
        """Seconds of an offer for `n` images, with what comes before all attacks."""
        return (self.rows[0].seconds(n) + offer.image * n) / self.processes

    def within(self, offer: Offer, seconds: float) -> int:
        """How many images an offer can be asked about in the time: a multiple of `step`, or all; 0 for none."""
        step = min(self.step, self.most)
        counts = (*range(step, self.most, step), self.most)
        return max((n for n in counts if self.offered(offer, n) <= seconds), default=0)

    def recommended(self, seconds: float) -> tuple[Offer, int] | None:
        """The offer to take within the time, and on how many images; None if none of them fits."""
        counts = [self.within(offer, seconds) for offer in self.offers]
        at = recommended(counts, [self.half_width(n) if n else 1.0 for n in counts], self.most)
        return None if at is None else (self.offers[at], counts[at])

    def affordable(self, seconds: float, most: int) -> int:
        """The largest number of images that fits into the time: a multiple of `step`, or `most`.

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
        """Half of the widest 95 % Wilson interval of `shares` with `n` images, a fraction of 1."""
        ends = [wilson(round(share * n), n) for share in self.shares]
        return max(high - low for low, high in ends) / 2

    def to_dict(self, n: int, budget: float | None = None) -> dict[str, Any]:
        """The forecast for `n` images, ready for JSON; with what to take within a budget of seconds."""
        advice = None if budget is None else self.recommended(budget)
        return {
            "n": n,
            "pilot_images": self.images,
            "batch_size": self.batch_size,
            "processes": self.processes,
            "half_width": self.half_width(n),
            "seconds": self.seconds(n),
            "rows": [
                {
                    "id": row.id,
                    "images": row.images(n),
                    "seconds": row.seconds(n) / self.processes,
                    "note": row.note,
                    "rough": row.rough,
                }
                for row in self.rows
            ],
            "choices": [
                {
                    "name": offer.name,
                    "ask": " ".join(offer.choice.ask),
                    "passes": offer.passes,
                    "seconds": self.offered(offer, n),
                    "says": offer.choice.says,
                    "blind": offer.choice.blind,
                }
                for offer in self.offers
            ],
            "recommended": None if advice is None else advice[0].name,
        }


def pilot(
    predictor: Predictor,
    split: Split,
    rows: Sequence[Row],
    *,
    batch_size: int,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    threat: tuple[Norm, Sequence[float]] | None = None,
) -> Forecast:
    """Run `rows` on the first images of `split`, whose order is stratified, then on more as long as that is quick.

    Under torchrun, all processes run it together. Each returns a forecast from its own times.

    Args:
        threat: norm and radii of what else could be asked, `Forecast.offers`; None for no offers.

    Raises:
        UserError: what `evaluate` raises.
    """
    if threat and not choices_in(threat[0], predictor.classes):  # as in L0
        threat = None
    evaluate(predictor, split.subset(FEWEST), [], batch_size=batch_size)  # warms up
    runs: dict[str, list[tuple[int, float]]] = {name: [] for name in (BEFORE, *(row.id for row in rows))}
    priced = {row.id: passes_of(row.spec, row.params, row.norm, predictor) for row in rows if row.surrogate is None}
    price = price_of(predictor, split, batch_size, FEWEST) if threat or any(priced.values()) else None
    dear = {name for name, passes in priced.items() if price and passes and leaders(price.pilot(passes) > DEAR)}
    radii = [row.eps for row in rows if row.id in dear and row.eps is not None] + list(threat[1] if threat else ())
    norm: Norm = threat[0] if threat else next((row.norm for row in rows if row.eps is not None), "linf")
    held: dict[float, float] = {}
    if price and radii:
        held = shares_left(predictor, split, norm, sorted(set(radii)), price, batch_size=batch_size, seed=seed)
    begun, images = time.perf_counter(), 0
    while images < min(MOST, len(split)):
        # A line takes two runs.
        if images > FEWEST and leaders(time.perf_counter() - begun) > SECONDS:
            break
        images, start = min(GROWTH * images or FEWEST, len(split)), time.perf_counter()
        part, run = split.subset(images), [row for row in rows if row.id not in dear]
        done = evaluate(predictor, part, run, seed=seed, batch_size=batch_size, on_progress=on_progress)
        # Seconds of a row are of one process, and the processes work at the same time.
        beside = (time.perf_counter() - start) * world().size
        for outcome in done.outcomes:
            if outcome.unit is not None:
                runs[outcome.row.id].append((len(outcome.unit.broken), outcome.unit.seconds))
                beside -= outcome.unit.seconds
        runs[BEFORE].append((images, max(0.0, beside)))
    # The checks look at a fixed number of images. From two small runs that would look like a price per image.
    once, image = _line(runs[BEFORE]) if images == MOST else (runs[BEFORE][-1][1], 0.0)
    forecasts = [RowForecast(BEFORE, once=once, image=image)]
    outcomes = {outcome.row.id: outcome for outcome in done.outcomes}
    for row in rows:
        if row.id in dear and price and (passes := priced[row.id]):
            share = done.clean_accuracy if row.eps is None else held[row.eps]
            image = share * price.seconds(passes)
            forecasts.append(RowForecast(row.id, image=image, limit=row.limit, rough=True))
        elif (outcome := outcomes[row.id]).unit is None:
            forecasts.append(RowForecast(row.id, note=f"{outcome.status}: {outcome.reason}"))
        else:
            chunk, image = _line(runs[row.id])
            forecasts.append(RowForecast(row.id, chunk=chunk, image=image, limit=row.limit))
    robust = [done.worst_case(eps) for eps in done.judged_eps] + list(held.values())
    step = min(predictor.classes, LARGEST_STEP)
    offers = _offers(predictor, threat, price, held) if threat and price else ()
    return Forecast(
        tuple(forecasts), (done.clean_accuracy, *robust), images, step, batch_size, world().size, offers, len(split)
    )


def _offers(
    predictor: Predictor, threat: tuple[Norm, Sequence[float]], price: Price, held: Mapping[float, float]
) -> tuple[Offer, ...]:
    """The choices that this model and norm have, priced; none without gradients, which all of them need."""
    norm, radii = threat
    found = []
    for name, choice in choices_in(norm, predictor.classes).items() if predictor.module is not None else ():
        rows = [ATTACKS[each] for each in choice.attacks]
        parts = [passes_of(spec, spec.params, norm, predictor) or Passes(0, 0) for spec in rows]
        whole = sum(parts, Passes(0, 0))
        found.append(Offer(name, choice, whole.all, price.seconds(whole) * sum(held[eps] for eps in radii)))
    return tuple(found)


def _line(runs: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Fixed seconds, and seconds per image: the line through the last two of a row's runs (images, seconds)."""
    fewer, shorter = runs[-2] if len(runs) > 1 else (0, 0.0)
    most, longest = runs[-1]
    average = longest / most
    slope = (longest - shorter) / (most - fewer) if most > fewer else average
    image = min(average, max(LEAST_SHARE * average, slope))
    return longest - most * image, image
