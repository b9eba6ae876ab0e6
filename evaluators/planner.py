"""What an evaluation will cost, row by row, and how many images a time is enough for."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dgad_tk.answers import wilson
from dgad_tk.common import UserError
from evaluators.evaluate import CHUNK
from evaluators.rows import Row
from evaluators.survey import PILOT_MOST, Costs, Survey

LEAVES_AFTER = 20
"""Backward passes that an image takes which breaks: the first steps of APGD break most of those that ever do."""
QUERIES_SHARE = 0.05
"""The same for a search without gradients, as a share of its queries."""
CHECK_PASSES = 45
"""Backward passes of the checks on the model, on each of PILOT_MOST images."""
LARGEST_STEP = 100
BEFORE = "clean, checks"


@dataclass(frozen=True)
class Line:
    """The expectation for one row, or for what comes before them. Passes are images, counted as in the results: a
    backward pass has a forward pass of its own."""

    id: str
    images: int
    forward_passes: int
    backward_passes: int
    seconds: float
    note: str = ""


def estimate(rows: Sequence[Row], found: Survey, n: int, *, processes: int = 1) -> list[Line]:
    """Passes and seconds of each row on `n` images, after a line for the clean predictions and the checks.

    An image that withstands takes all passes of an attack; one that breaks leaves a search early. Seconds are those
    of passes at the batch size that is left; what an attack computes between two passes is not in them.

    Args:
        rows: from `plan`.
        found: from `survey`, of the same rows.
        processes: that share the work.
    """
    model = found.costs[None]
    checks = CHECK_PASSES * min(n, PILOT_MOST) if model.backward else 0
    seconds = _seconds(model, n, checks, found.batch_size)
    lines = [Line(BEFORE, n, n + checks, checks, seconds), *(_row(row, found, n) for row in rows)]
    return [replace(line, seconds=line.seconds / processes) for line in lines]


def plan_budget(rows: Sequence[Row], found: Survey, seconds: float, most: int, *, processes: int = 1) -> int:
    """The largest number of images that `rows` can be expected to be done with in time.

    A multiple of the number of classes, up to LARGEST_STEP: the order of images is stratified, so that each class is
    there equally often. Or `most`.

    Raises:
        UserError: the time is not enough for the first step.
    """
    step = min(found.classes, LARGEST_STEP, most)

    def needed(n: int) -> float:
        return sum(line.seconds for line in estimate(rows, found, n, processes=processes))

    steps: list[int] = [*range(step, most, step), most]
    fitting = [n for n in steps if needed(n) <= seconds]
    if not fitting:
        raise UserError(
            f"a budget of {seconds:g} s is too little: {step} images take about {math.ceil(needed(step)):,} s",
            hint="raise --budget, or ask for fewer attacks",
        )
    return max(fitting)


def half_width(found: Survey, n: int) -> float:
    """Half of the 95 % Wilson interval that `n` images give, a fraction of 1: the widest of clean accuracy and of the
    robust accuracies to be expected of the model itself."""
    shares = [found.clean, *(found.clean * share for (name, _, _), share in found.robust.items() if name is None)]
    ends = [wilson(round(share * n), n) for share in shares]
    return max(high - low for low, high in ends) / 2


def as_document(rows: Sequence[Row], found: Survey, n: int, *, processes: int = 1) -> dict[str, Any]:
    """The plan for `n` images, ready for JSON. Shares are fractions of 1."""
    lines = estimate(rows, found, n, processes=processes)
    return {
        "n": n,
        "batch_size": found.batch_size,
        "processes": processes,
        "half_width": half_width(found, n),
        "clean_accuracy": found.clean,
        "robust": [
            {"surrogate": name, "norm": norm, "eps": eps, "share": share}
            for (name, norm, eps), share in found.robust.items()
        ],
        "forward_passes": sum(line.forward_passes for line in lines),
        "backward_passes": sum(line.backward_passes for line in lines),
        "seconds": sum(line.seconds for line in lines),
        "rows": [asdict(line) for line in lines],
    }


def _row(row: Row, found: Survey, n: int) -> Line:
    name = row.surrogate.name if row.surrogate else None
    if row.surrogate is not None and row.surrogate.predictor is None:
        return Line(row.id, 0, 0, 0, 0.0, f"will be skipped: {row.surrogate.reason}")
    if row.spec.passes is None:
        return Line(row.id, 0, 0, 0, 0.0, "not in the total: what it costs is not known beforehand")
    forwards, backwards = row.spec.passes(row.params, found.classes)
    if backwards and found.costs[name].backward is None:
        return Line(row.id, 0, 0, 0, 0.0, "will be skipped: the model has no gradients")

    asked = min(n, row.limit or n)
    # What a smaller radius has broken is not attacked again.
    reached = found.robust.get((name, row.norm, row.smaller[-1]), 1.0) if row.smaller else 1.0
    attacked = asked * found.clean * reached
    share, early, note = 1.0, (forwards, backwards), ""
    if row.eps is not None and row.spec.searches:
        early = _until_broken(forwards, backwards)
        share = min(1.0, found.robust.get((name, row.norm, row.eps), 1.0) / reached)
        if (name, row.norm, row.eps) not in found.robust:
            note = "at most: how many images withstand is unknown"
    chunks, verdicts = math.ceil(asked / CHUNK), round(attacked)
    counts, seconds = [0.0, 0.0], _seconds(found.costs[None], verdicts, 0, found.batch_size)
    # What breaks early does so while batches are full; what withstands is alone in the end.
    for images, company, passes in (
        (attacked * share, attacked * share, (forwards, backwards)),
        (attacked * (1 - share), attacked, early),
    ):
        counts = [count + images * each for count, each in zip(counts, passes, strict=True)]
        batch = _batch(company / chunks, found.batch_size)
        seconds += _seconds(found.costs[name], images * passes[0], images * passes[1], batch)
    searched, backward = round(sum(counts)), round(counts[1])
    return Line(row.id, verdicts, searched + verdicts, backward, seconds, note)


def _batch(images: float, batch_size: int) -> float:
    """The images of a chunk are dealt to batches of about one size."""
    images = max(1.0, images)
    return images / math.ceil(images / batch_size)


def _until_broken(forwards: int, backwards: int) -> tuple[int, int]:
    if backwards:
        return 0, min(backwards, LEAVES_AFTER)
    return math.ceil(forwards * QUERIES_SHARE), 0


def _seconds(costs: Costs, forwards: float, backwards: float, batch: float) -> float:
    seconds = forwards * costs.forward.per_image(batch)
    return seconds + backwards * costs.backward.per_image(batch) if costs.backward is not None else seconds
