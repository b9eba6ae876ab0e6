"""evaluate() attacks a predictor, and records for every image and every attack what the deployed runtime answered.

`report` derives percentages from that record. Only images that the clean model gets right are attacked. Every candidate
is brought into the ball to the last bit, and `predictor.predict` judges it.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.config.threat import Norm
from dgad_tk.data import Split
from dgad_tk.distributed import from_all, world
from evaluators.engine.probes import probe
from evaluators.engine.record import Evaluation, Outcome, finished
from evaluators.engine.search import RowFailedError
from evaluators.engine.units import Unit, UnitStore
from evaluators.engine.work import Work
from evaluators.plan.rows import Row
from evaluators.target.judge import Judged, check_images, compare_twin, images_of, judge

CHUNK = 500
"""Images in a unit of work. They follow the dataset's fixed order, so that units do not depend on --limit."""
SURROGATE_SLACK, SURROGATE_IMAGES = 0.10, 1000
"""A surrogate is left out if its accuracy on so many images is lower than the target's by more than the slack."""


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is.

    Attributes:
        row: id of the row, which is the `number`-th of `rows`.
        done: images of the row that are done, of `n`.
        broken, attacked: images of the row so far.
    """

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

    Under torchrun, each process does its share of the units, and all of them return the whole record.

    Args:
        rows: from `plan`. The budget rows carry the threat.
        classes: names of the classes, in the order of the labels. Default: those of the model's record, or numbers.
        seed: of every draw that an attack makes.
        batch_size: images at a time. It can change results, since some attacks of other packages draw batch by batch.
            None means `default_batch_size`.
        store: folder of finished units. A second call with it does only what is new.
        examples: folder of transfer examples, which several targets share.

    Raises:
        UserError: images of another shape, labels out of range, or a twin that differs from the runtime.
        ValueError: a store for a predictor, or one with a sibling, without a hash: its units could be taken for another
            model's.
    """
    if store is not None and not all(each.sha256 for each in (predictor, *predictor.siblings.values())):
        raise ValueError("expected a predictor with a sha256, which its stored units are kept under")
    check_images(predictor, split)
    batch_size = batch_size or default_batch_size(predictor.input_shape)
    chunks = [slice(start, min(start + CHUNK, len(split))) for start in range(0, len(split), CHUNK)]
    clean, digest, hashes = _clean(predictor, split, chunks, batch_size)
    right = clean.right(split.labels)
    norm: Norm = next((row.norm for row in sorted(rows, key=lambda row: row.eps is None)), "linf")
    eps = tuple(dict.fromkeys(row.eps for row in rows if row.eps is not None))
    twin = compare_twin(predictor, split, clean.finite, batch_size)
    probes = probe(predictor, split, right, norm=norm, eps=max(eps, default=0.0), batch_size=batch_size)
    reasons = _unfit(predictor, rows, split, batch_size, float(right.mean()))
    work = Work(predictor, split, chunks, hashes, right, seed, batch_size, UnitStore(store), UnitStore(examples))
    # Smaller radii come first, because larger ones build on them. Rows without a radius come last: they take longest.
    asked = sorted((row for row in rows if row.id not in reasons), key=lambda row: row.eps or math.inf)
    every = from_all(_share(work, asked, on_progress))
    done = {place: unit for units, _ in every for place, unit in units.items()}
    # If a row failed in several processes, the reason of the first one counts.
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
    """Images in a batch of about a quarter of a million pixels per channel: from 16 to CHUNK.

    It is the same on every machine, because results depend on it.
    """
    return max(16, min(CHUNK, 2**18 // (input_shape[1] * input_shape[2])))


def _class_names(predictor: Predictor, split: Split, given: Sequence[str]) -> tuple[str, ...]:
    known = given or (predictor.artifact.classes if predictor.artifact else ())
    return tuple(known) if len(known) > split.labels.max() else tuple(map(str, range(predictor.classes)))


def _clean(
    predictor: Predictor, split: Split, chunks: Sequence[slice], batch_size: int
) -> tuple[Judged, str, list[str]]:
    """Answers to the clean images; SHA-256 of all images, labels and places; and the same hash of each chunk."""
    answers: list[Judged] = []
    hashes: list[str] = []
    total = hashlib.sha256()
    for chunk in chunks:
        content = split.take(chunk).tobytes() + split.labels[chunk].tobytes() + split.index[chunk].tobytes()
        total.update(content)
        hashes.append(hashlib.sha256(content).hexdigest())
        answers.append(judge(predictor, images_of(split, chunk), batch_size))
    return Judged(*(np.concatenate(parts) for parts in zip(*answers, strict=True))), total.hexdigest(), hashes


def _share(
    work: Work, rows: Sequence[Row], on_progress: OnProgress | None
) -> tuple[dict[tuple[str, int], Unit], dict[str, str]]:
    """What this process does: units by row id and number of the chunk, and why rows failed, by row id."""
    done: dict[tuple[str, int], Unit] = {}
    failed: dict[str, str] = {}
    families = list(dict.fromkeys(row.family for row in rows))

    def tell(position: int, row: Row, images: int) -> None:
        if on_progress:
            units = [unit for (name, _), unit in done.items() if name == row.id]
            broken, attacked = (sum(int(getattr(unit, key).sum()) for unit in units) for key in ("broken", "attacked"))
            most = min(len(work.split), row.limit or len(work.split))
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
                # If the smaller radius failed, nothing is known of it.
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
    sample = split.subset(min(len(split), SURROGATE_IMAGES))
    surrogates = {row.surrogate.name: row.surrogate for row in rows if row.surrogate}
    weak: dict[str, str] = {}
    for name, surrogate in surrogates.items():
        if surrogate.predictor is None:
            weak[name] = surrogate.reason
            continue
        own = float(judge(surrogate.predictor, images_of(sample, slice(None)), batch_size).right(sample.labels).mean())
        if own < accuracy - SURROGATE_SLACK:
            weak[name] = (
                f"surrogate {name} is right on {own:.1%} of the images, the target on {accuracy:.1%}: "
                f"more than {SURROGATE_SLACK:.0%} worse makes weak examples"
            )
    reasons: dict[str, str] = {}
    for row in rows:
        source = row.surrogate.predictor if row.surrogate else predictor
        if row.surrogate and row.surrogate.name in weak:
            reasons[row.id] = weak[row.surrogate.name]
        elif row.spec.needs_gradients and source is not None and source.module is None:
            reasons[row.id] = f"'{source.path}' has no gradients; --suite blackbox needs none"
    return reasons
