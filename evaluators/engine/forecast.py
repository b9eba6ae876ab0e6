"""What an evaluation of any number of images will cost, row by row, and what else could be asked of the model."""

import math
from dataclasses import dataclass
from typing import Any

from dgad_tk.answers.doubts import wilson
from dgad_tk.common import UserError
from evaluators.engine.evaluate import CHUNK
from evaluators.plan.choices import Choice, recommended


@dataclass(frozen=True)
class RowForecast:
    """What one row will cost. The first row is that of what comes before all attacks.

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
        image: seconds per image at all radii, in one process, of the attacks that were not asked for.
        rows: forecasts of its attacks that were asked for as they are.
    """

    name: str
    choice: Choice
    passes: int
    image: float
    rows: tuple[RowForecast, ...] = ()

    @property
    def rough(self) -> bool:
        """Whether part of the time is that of passes, and was not measured."""
        return self.image > 0 or any(row.rough for row in self.rows)


@dataclass(frozen=True)
class Forecast:
    """What an evaluation of any number of images will cost.

    Attributes:
        rows: what comes before all attacks, then the rows in their order.
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
        own = offer.image * n + sum(row.seconds(n) for row in offer.rows)
        return (self.rows[0].seconds(n) + own) / self.processes

    def within(self, offer: Offer, seconds: float | None) -> int:
        """How many images an offer can be asked about in the time: a multiple of `step`, or all; 0 for none.

        All, where there is no limit of time.
        """
        if seconds is None:
            return self.most
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
        counts = [n if budget is None else self.within(offer, budget) for offer in self.offers]
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
                    "images": images,
                    "half_width": self.half_width(images) if images else None,
                    "seconds": self.offered(offer, images) if images else None,
                    "rough": offer.rough,
                    "says": offer.choice.says,
                    "blind": offer.choice.blind,
                }
                for offer, images in zip(self.offers, counts, strict=True)
            ],
            "recommended": None if advice is None else advice[0].name,
        }
