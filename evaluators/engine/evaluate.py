"""evaluate(): attacks a predictor and keeps, for every image and every attack, what the deployed runtime answered.

Percentages are derived from that record (`report`). Only images that the clean model gets right are attacked; every
candidate is brought into the ball to the last bit and judged by `predictor.predict`.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.data import Split
from dgad_tk.distributed import from_all, world
from evaluators.engine.probes import probe
from evaluators.engine.record import Evaluation, Outcome, finished
from evaluators.engine.search import RowFailedError
from evaluators.engine.units import Unit, UnitStore
from evaluators.engine.work import Work
from evaluators.plan.rows import Row
from evaluators.target.ball import Norm
from evaluators.target.judge import Judged, check_images, compare_twin, images_of, judge

CHUNK = 500
"""Images in a unit of work. Cut from the dataset's fixed order, so it never depends on how many are evaluated."""
SURROGATE_SLACK, SURROGATE_IMAGES = 0.10, 1000
"""A surrogate is left out whose accuracy on the first images is by so much below the target's."""

Units = dict[tuple[str, int], Unit]
"""Id of the row and number of the chunk to what was found."""


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is: row `row` of `rows`, `done` of `n` images, `broken` of `attacked` so far."""

    row: str
    number: int
    rows: int
    done: int
    n: int
    broken: int
    attacked: int


OnProgress = Callable[[Progress], None]


# TF32 moves logits by 1e-3, more than a verdict may depend on.
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def evaluate(
    predictor: Predictor,
    split: Split,
    rows: Sequence[Row],
    *,
    classes: Sequence[str] = (),
    seed: int = 0,
    batch_size: int | None = None,
    store: Path | None = None,
    examples: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Attack `predictor` on the images of `split`.

    Started by torchrun, each process does its share of the units and all of them return the whole record.

    Args:
        rows: from `plan`; the budget rows carry the threat.
        classes: names of the classes, in the order of the labels; else those of the model's record, or numbers.
        seed: of every draw that an attack makes.
        batch_size: images at a time; some attacks by other packages draw batch by batch, so it belongs to the question.
            None is `default_batch_size`.
        store: folder of finished units; a second call with it does only what is new.
        examples: folder in which transfer examples are left for the next target, and found from the last one.

    Raises:
        UserError: images of another shape, labels out of range, or a twin that differs from the runtime.
        ValueError: a store for a predictor without a hash, whose units nothing could tell from another's.
    """
    if store is not None and not predictor.sha256:
        raise ValueError("expected a predictor with a sha256, which its stored units are kept under")
    check_images(predictor, split)
    batch_size = batch_size or default_batch_size(predictor.input_shape)
    chunks = [slice(start, min(start + CHUNK, len(split))) for start in range(0, len(split), CHUNK)]
    clean, digest, hashes = _clean(predictor, split, chunks, batch_size)
    right = clean.right(split.labels)
    norm: Norm = next((row.norm for row in rows if row.eps is not None), "linf")
    eps = tuple(dict.fromkeys(row.eps for row in rows if row.eps is not None))
    twin = compare_twin(predictor, split, clean.finite, batch_size)
    probes = probe(predictor, split, right, norm=norm, eps=max(eps, default=0.0), batch_size=batch_size)
    reasons = _unfit(predictor, rows, split, batch_size, float(right.mean()))
    work = Work(predictor, split, chunks, hashes, right, seed, batch_size, UnitStore(store), UnitStore(examples))
    # What a smaller radius breaks is known before a larger one is tried; what has no radius takes longest.
    asked = sorted((row for row in rows if row.id not in reasons), key=lambda row: row.eps or math.inf)
    every = from_all(_share(work, asked, on_progress))
    done = {place: unit for units, _ in every for place, unit in units.items()}
    # Of several reasons, the first process's counts.
    failed = {name: reason for _, part in reversed(every) for name, reason in part.items()}
    outcomes: list[Outcome] = []
    for row in rows:
        if reason := reasons.get(row.id) or failed.get(row.id):
            outcomes.append(Outcome(row, reason=reason, failed=row.id in failed))
        else:
            parts = [done[row.id, number] for number, chunk in enumerate(chunks) if _reaches(row, chunk)]
            outcomes.append(finished(row, parts, [chunk.start for chunk in chunks[: len(parts)]]))
    return Evaluation(
        predictor=predictor,
        split=split,
        classes=_class_names(predictor, split, classes),
        clean=clean,
        outcomes=outcomes,
        twin=twin,
        probes=probes,
        images_sha256=digest,
        norm=norm,
        eps=eps,
        seed=seed,
        batch_size=batch_size,
    )


def default_batch_size(input_shape: tuple[int, int, int]) -> int:
    """As many images as keep the pixels of a batch at about a quarter of a million, 16 to CHUNK.

    It depends on nothing that differs between machines, since it is part of what an evaluation's record answers.
    """
    return max(16, min(CHUNK, 2**18 // (input_shape[1] * input_shape[2])))


def _class_names(predictor: Predictor, split: Split, given: Sequence[str]) -> tuple[str, ...]:
    known = given or (predictor.artifact.classes if predictor.artifact else ())
    return tuple(known) if len(known) > split.labels.max() else tuple(map(str, range(predictor.classes)))


def _clean(
    predictor: Predictor, split: Split, chunks: Sequence[slice], batch_size: int
) -> tuple[Judged, str, list[str]]:
    """Answers to the clean images, and SHA-256 of all images and labels and of each chunk."""
    answers: list[Judged] = []
    hashes: list[str] = []
    total = hashlib.sha256()
    for chunk in chunks:
        content = split.take(chunk).tobytes() + split.labels[chunk].tobytes() + split.index[chunk].tobytes()
        total.update(content)
        hashes.append(hashlib.sha256(content).hexdigest())
        answers.append(judge(predictor, images_of(split, chunk), batch_size))
    predicted, finite = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    return Judged(predicted, finite), total.hexdigest(), hashes


def _share(work: Work, rows: Sequence[Row], on_progress: OnProgress | None) -> tuple[Units, dict[str, str]]:
    """What this process does: units, and the ids of the rows that failed, with the reason."""
    done: Units = {}
    failed: dict[str, str] = {}
    n = len(work.split)
    families = list(dict.fromkeys(row.family for row in rows))

    def tell(position: int, row: Row, images: int) -> None:
        if on_progress:
            units = [unit for (name, _), unit in done.items() if name == row.id]
            broken, attacked = (sum(int(getattr(unit, key).sum()) for unit in units) for key in ("broken", "attacked"))
            most = min(n, row.limit or n)
            on_progress(Progress(row.id, position + 1, len(rows), min(images, most), most, broken, attacked))

    for position, row in enumerate(rows):
        same = (each for each in rows if row.smaller and each.family == row.family)
        below = next((each.id for each in same if each.eps == row.smaller[-1]), "")
        for number, chunk in enumerate(work.chunks):
            # A family stays in one process, since its radii build on each other.
            if (number + families.index(row.family)) % world().size != world().rank or not _reaches(row, chunk):
                continue
            tell(position, row, chunk.start)  # a unit may take minutes
            try:
                # Of a smaller radius that failed nothing is known.
                done[row.id, number] = work.unit(row, number, done.get((below, number)))
            except RowFailedError as error:
                failed[row.id] = str(error)
                break
            tell(position, row, chunk.stop)
    return done, failed


def _reaches(row: Row, chunk: slice) -> bool:
    return row.limit is None or chunk.start < row.limit


def _unfit(predictor: Predictor, rows: Sequence[Row], split: Split, batch_size: int, accuracy: float) -> dict[str, str]:
    """Ids of the rows that cannot be run, and why."""
    surrogates = _unfit_surrogates(rows, split, batch_size, accuracy)
    reasons: dict[str, str] = {}
    for row in rows:
        if row.surrogate is not None and row.surrogate.name in surrogates:
            reasons[row.id] = surrogates[row.surrogate.name]
            continue
        source = row.surrogate.predictor if row.surrogate else predictor
        if row.spec.needs_gradients and source is not None and source.module is None:
            reasons[row.id] = f"'{source.path}' has no gradients; --suite blackbox needs none"
    return reasons


def _unfit_surrogates(rows: Sequence[Row], split: Split, batch_size: int, accuracy: float) -> dict[str, str]:
    """Names of the surrogates that no transfer row can be run with, and why."""
    reasons: dict[str, str] = {}
    sample = split.subset(min(len(split), SURROGATE_IMAGES))
    for surrogate in {row.surrogate.name: row.surrogate for row in rows if row.surrogate}.values():
        if surrogate.predictor is None:
            reasons[surrogate.name] = surrogate.reason
            continue
        answers = judge(surrogate.predictor, images_of(sample, slice(None)), batch_size)
        own = float(answers.right(sample.labels).mean())
        if own < accuracy - SURROGATE_SLACK:
            reasons[surrogate.name] = (
                f"surrogate {surrogate.name} is right on {own:.1%} of the images, the target on {accuracy:.1%}: "
                f"more than {SURROGATE_SLACK:.0%} worse makes weak examples"
            )
    return reasons
