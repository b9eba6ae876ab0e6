"""Forecasts what an evaluation will cost: it runs the rows on a few images, and extrapolates their seconds.

A row that would be dear even on a few images is not run. Its price is that of its passes.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.config.threat import Norm
from dgad_tk.data import Split
from dgad_tk.distributed import leaders, world
from evaluators.attacks import ATTACKS
from evaluators.attacks.passes import Passes
from evaluators.engine.evaluate import Progress, evaluate
from evaluators.engine.forecast import Forecast, Offer, RowForecast
from evaluators.engine.prices import Price, passes_of, price_of, shares_left
from evaluators.plan.choices import choices_in
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
    asked = list(zip(rows, forecasts[1:], strict=True))
    offers = _offers(predictor, threat, price, held, asked) if threat and price else ()
    return Forecast(
        tuple(forecasts), (done.clean_accuracy, *robust), images, step, batch_size, world().size, offers, len(split)
    )


def _offers(
    predictor: Predictor,
    threat: tuple[Norm, Sequence[float]],
    price: Price,
    held: Mapping[float, float],
    asked: Sequence[tuple[Row, RowForecast]],
) -> tuple[Offer, ...]:
    """The choices that this model and norm have, priced; none without gradients, which all of them need.

    An attack that is among the rows asked for, at every radius and with its defaults, costs what it was found to cost.
    """
    norm, radii = threat
    found = []
    for name, choice in choices_in(norm, predictor.classes).items() if predictor.module is not None else ():
        known: list[RowForecast] = []
        whole = unknown = Passes(0, 0)
        for each in choice.attacks:
            passes = passes_of(ATTACKS[each], ATTACKS[each].params, norm, predictor) or Passes(0, 0)
            own = [
                told
                for row, told in asked
                if (row.attack, row.surrogate, row.norm, row.settings) == (each, None, norm, ATTACKS[each].params)
                and row.eps in radii
                and not told.note
            ]
            whole += passes
            if len(own) == len(radii):
                known += own
            else:
                unknown += passes
        held_on = sum(held[eps] for eps in radii)
        found.append(Offer(name, choice, whole.all, price.seconds(unknown) * held_on, tuple(known)))
    return tuple(found)


def _line(runs: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Fixed seconds, and seconds per image: the line through the last two of a row's runs (images, seconds)."""
    fewer, shorter = runs[-2] if len(runs) > 1 else (0, 0.0)
    most, longest = runs[-1]
    average = longest / most
    slope = (longest - shorter) / (most - fewer) if most > fewer else average
    image = min(average, max(LEAST_SHARE * average, slope))
    return longest - most * image, image
