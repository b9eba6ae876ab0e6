"""evaluate(): attacks a predictor and keeps, for every image and every attack, what the deployed runtime answered.

Percentages are derived from that record (`report`). Only images that the clean model gets right are attacked; every
candidate is brought into the ball to the last bit and judged by `predictor.predict`.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dgad_tk.artifact import tool_versions
from dgad_tk.data import Split
from dgad_tk.distributed import from_all, world
from dgad_tk.predictor import Predictor
from evaluators.attacks.halfway import read_arrays, write_arrays
from evaluators.ball import Norm
from evaluators.judge import check_images, compare_twin, images_of, judge
from evaluators.probes import exchanged_channels, probe
from evaluators.record import IDLE, Evaluation, Outcome
from evaluators.rows import Row
from evaluators.search import Candidates, Chunk, RowFailedError, search, verdict, with_smaller
from evaluators.units import Unit, UnitStore

CHUNK = 500
"""Images in a unit of work. Cut from the dataset's fixed order, so it never depends on how many are evaluated."""
SURROGATE_SLACK = 0.10


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
    on_progress: Callable[[Progress], None] | None = None,
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
        UserError: images of another shape, labels out of range, a twin that differs from the runtime, or a row of fewer
            images than another one builds on.
        ValueError: a store for a predictor without a hash, whose units nothing could tell from another's.
    """
    if store is not None and not predictor.sha256:
        raise ValueError("expected a predictor with a sha256, which its stored units are kept under")
    check_images(predictor, split)
    batch_size = batch_size or default_batch_size(predictor.input_shape)
    chunks = [slice(start, min(start + CHUNK, len(split))) for start in range(0, len(split), CHUNK)]
    clean_pred, clean_finite, digest, hashes = _clean(predictor, split, chunks, batch_size)
    clean_right = (clean_pred == split.labels) & clean_finite
    norm: Norm = next((row.norm for row in rows if row.eps is not None), "linf")
    eps = tuple(dict.fromkeys(row.eps for row in rows if row.eps is not None))
    twin = compare_twin(predictor, split, clean_finite, batch_size)
    probes = probe(predictor, split, clean_right, norm=norm, eps=max(eps, default=0.0), batch_size=batch_size)
    probes |= exchanged_channels(predictor, split, clean_right, batch_size)
    reasons = _unfit(predictor, rows, split, batch_size, float(clean_right.mean()))
    work = _Work(predictor, split, chunks, hashes, clean_right, seed, batch_size, UnitStore(store), UnitStore(examples))
    done: dict[tuple[str, int], Unit] = {}
    failed: dict[str, str] = {}
    families = list(dict.fromkeys(row.family for row in rows))
    # What a smaller radius breaks is known before a larger one is tried; what has no radius takes longest.
    asked = sorted((row for row in rows if row.id not in reasons), key=lambda row: row.eps or math.inf)
    for position, row in enumerate(asked):
        for number, chunk in enumerate(chunks):
            # A family stays in one process, since its radii build on each other.
            if (number + families.index(row.family)) % world().size != world().rank or not _reaches(row, chunk):
                continue
            if row.id in failed:
                break
            if on_progress:  # a unit may take minutes
                on_progress(_progress(row, position, len(asked), chunk.start, len(split), done))
            smaller = next((each for each in reversed(asked[:position]) if _builds_on(row, each)), None)
            try:
                # Of a smaller radius that failed nothing is known.
                done[row.id, number] = work.unit(row, number, done.get((smaller.id, number)) if smaller else None)
            except RowFailedError as error:
                failed[row.id] = str(error)
                break
            if on_progress:
                on_progress(_progress(row, position, len(asked), chunk.stop, len(split), done))
    every = from_all((done, failed))
    done = {place: unit for part, _ in every for place, unit in part.items()}
    # Of several reasons, the first process's counts.
    failed = {name: reason for _, part in reversed(every) for name, reason in part.items()}
    outcomes: list[Outcome] = []
    for row in rows:
        outcome = Outcome(row, reason=reasons.get(row.id, failed.get(row.id, "")), failed=row.id in failed)
        if not outcome.reason:
            numbers = [number for number, chunk in enumerate(chunks) if _reaches(row, chunk)]
            outcome.unit = _joined([done[row.id, number] for number in numbers], [chunks[each] for each in numbers])
            outcome.flags = _flags(row, outcome.unit)
        outcomes.append(outcome)
    return Evaluation(
        predictor,
        split.labels,
        split.index,
        clean_pred,
        clean_finite,
        clean_right,
        outcomes,
        twin,
        probes,
        digest,
        norm,
        eps,
        seed,
        batch_size,
        split,
        _class_names(predictor, split, classes),
    )


def _class_names(predictor: Predictor, split: Split, given: Sequence[str]) -> tuple[str, ...]:
    known = given or (predictor.artifact.classes if predictor.artifact else ())
    return tuple(known) if len(known) > split.labels.max() else tuple(map(str, range(predictor.classes)))


def _reaches(row: Row, chunk: slice) -> bool:
    return row.limit is None or chunk.start < row.limit


def _builds_on(row: Row, other: Row) -> bool:
    return bool(row.smaller) and other.family == row.family and other.eps == row.smaller[-1]


def _progress(
    row: Row, position: int, rows: int, images: int, n: int, done: Mapping[tuple[str, int], Unit]
) -> Progress:
    units = [unit for (name, _), unit in done.items() if name == row.id]
    broken, attacked = (sum(int(getattr(unit, key).sum()) for unit in units) for key in ("broken", "attacked"))
    most = min(n, row.limit or n)
    return Progress(row.id, position + 1, rows, min(images, most), most, broken, attacked)


def default_batch_size(input_shape: tuple[int, int, int]) -> int:
    """As many images as keep the pixels of a batch at about a quarter of a million, 16 to CHUNK.

    It depends on nothing that differs between machines, since it is part of what an evaluation's record answers.
    """
    return max(16, min(CHUNK, 2**18 // (input_shape[1] * input_shape[2])))


def _clean(
    predictor: Predictor, split: Split, chunks: Sequence[slice], batch_size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], str, list[str]]:
    """Clean predictions, where all logits are finite, and SHA-256 of all images and labels and of each chunk."""
    predictions: list[NDArray[np.int64]] = []
    finites: list[NDArray[np.bool_]] = []
    hashes: list[str] = []
    total = hashlib.sha256()
    for chunk in chunks:
        raw, labels = split.take(chunk), split.labels[chunk]
        content = raw.tobytes() + labels.tobytes() + split.index[chunk].tobytes()
        total.update(content)
        hashes.append(hashlib.sha256(content).hexdigest())
        predicted, finite = judge(predictor, images_of(split, chunk), batch_size)
        predictions.append(predicted)
        finites.append(finite)
    return np.concatenate(predictions), np.concatenate(finites), total.hexdigest(), hashes


@dataclass
class _Work:
    """Makes units, or finds them in the store."""

    predictor: Predictor
    split: Split
    chunks: Sequence[slice]
    hashes: Sequence[str]
    right: NDArray[np.bool_]
    seed: int
    batch_size: int
    units: UnitStore
    examples: UnitStore

    def unit(self, row: Row, number: int, smaller: Unit | None) -> Unit:
        """The outcome of a row on chunk `number`, of which `smaller` is known already."""
        search_question = self._question(row, number)
        question = {
            **search_question,
            "model": self.predictor.sha256,
            "interface": self.predictor.interface.to_dict(),
            "runtime": self.predictor.runtime,
            "smaller": list(row.smaller) if smaller is not None else [],
        }
        if (stored := self.units.get(question)) is not None:
            return stored
        chunk = self._chunk(row, number)
        right = self.right[self.chunks[number]][: len(chunk.labels)]
        todo = right if smaller is None else right & ~smaller.broken
        common = {"seed": self.seed, "batch_size": self.batch_size}
        if row.surrogate is None:
            halfway = self.units.halfway(question)
            found = search(self.predictor, row, chunk.only(todo), halfway=halfway, **common)
        else:
            found = self._made_on(row, chunk, search_question).only(todo)
        unit = verdict(self.predictor, row, chunk, right, todo, found, batch_size=self.batch_size, gallery=number == 0)
        if smaller is not None:
            unit = with_smaller(unit, smaller)
        self.units.put(question, unit)
        return unit

    def _chunk(self, row: Row, number: int) -> Chunk:
        place = self.chunks[number]
        if row.limit is not None:
            place = slice(place.start, min(place.stop, row.limit))
        return Chunk(images_of(self.split, place), self.split.labels[place], self.split.index[place])

    def _made_on(self, row: Row, chunk: Chunk, question: Mapping[str, Any]) -> Candidates:
        """Examples of the whole chunk, whatever the target gets right: so they serve every target."""
        assert row.surrogate is not None
        source = row.surrogate.predictor
        assert source is not None
        path = self.examples.path(question)
        if (kept := read_arrays(path)) is not None:
            return Candidates(**{**kept, "seconds": 0.0, "forwards": 0, "backwards": 0})
        halfway = self.units.halfway(question)
        found = search(source, row, chunk, seed=self.seed, batch_size=self.batch_size, halfway=halfway)
        halfway.forget()
        write_arrays(path, vars(found))
        return found

    def _question(self, row: Row, number: int) -> dict[str, Any]:
        """Whatever could change what a search finds."""
        surrogate = row.surrogate.predictor if row.surrogate else None
        return {
            "attack": row.attack,
            "params": row.settings,
            "norm": row.norm,
            "eps": row.eps,
            "surrogate": surrogate.sha256 if surrogate else None,
            "surrogate_interface": surrogate.interface.to_dict() if surrogate else None,
            "images": self.hashes[number],
            "seed": self.seed,
            "batch_size": self.batch_size,
            "threads": torch.get_num_threads(),
            "versions": tool_versions(),
            "gpu": torch.cuda.is_available(),
        }


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
    sample = split.subset(min(len(split), 1000))
    for surrogate in {row.surrogate.name: row.surrogate for row in rows if row.surrogate}.values():
        if surrogate.predictor is None:
            reasons[surrogate.name] = surrogate.reason
            continue
        predicted, finite = judge(surrogate.predictor, images_of(sample, slice(None)), batch_size)
        own = float(((predicted == sample.labels) & finite).mean())
        if own < accuracy - SURROGATE_SLACK:
            reasons[surrogate.name] = (
                f"surrogate {surrogate.name} is right on {own:.1%} of the images, the target on {accuracy:.1%}: "
                f"more than {SURROGATE_SLACK:.0%} worse makes weak examples"
            )
    return reasons


def _joined(parts: Sequence[Unit], chunks: Sequence[slice]) -> Unit:
    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    places = [part.gallery_at + chunk.start for part, chunk in zip(parts, chunks, strict=True)]
    return Unit(
        attacked=joined("attacked"),
        broken=joined("broken"),
        adv_pred=joined("adv_pred"),
        l2=joined("l2"),
        linf=joined("linf"),
        seconds=sum(part.seconds for part in parts),
        forward_passes=sum(part.forward_passes for part in parts),
        backward_passes=sum(part.backward_passes for part in parts),
        gallery=joined("gallery"),
        gallery_at=np.concatenate(places),
        broken_by=joined("broken_by"),
        reused=sum(part.reused for part in parts),
        stages=max((part.stages for part in parts), key=lambda names: len(names)),
        stage_seconds=[sum(each) for each in zip_longest(*(part.stage_seconds for part in parts), fillvalue=0.0)],
        warnings=list(dict.fromkeys(text for part in parts for text in part.warnings)),
    )


def _flags(row: Row, unit: Unit) -> list[str]:
    flags = [row.spec.note] if row.spec.note else []
    flags += unit.warnings
    attacked = int(unit.attacked.sum())
    if attacked and float((unit.linf[unit.attacked] > 0).mean()) < 0.01:
        flags.append(IDLE)
    return flags
