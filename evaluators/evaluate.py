"""evaluate(): attacks a predictor and keeps, for every image and every attack, what the deployed runtime answered.

Percentages are derived from that record (`report`). Only images that the clean model gets right are attacked; every
candidate is brought into the ball to the last bit and judged by `predictor.predict`.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dgad_tk.artifact import tool_versions
from dgad_tk.data import Split
from dgad_tk.predictor import Images, Logits, Predictor
from evaluators.attacks import Budget
from evaluators.ball import into_ball, l2, linf
from evaluators.estimators import Counted, to_estimator
from evaluators.judge import check_images, compare_twin, images_of, judge
from evaluators.record import IDLE, Evaluation, Outcome
from evaluators.rows import Row
from evaluators.units import NOT_ATTACKED, Unit, UnitStore

CHUNK = 500
"""Images in a unit of work. Cut from the dataset's fixed order, so it never depends on how many are evaluated."""
GALLERY = 4
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
    seed: int = 0,
    batch_size: int | None = None,
    store: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Attack `predictor` on the images of `split`.

    Args:
        rows: from `plan`; the budget rows carry the threat.
        seed: of every draw that an attack makes.
        batch_size: images at a time; attacks by other packages draw batch by batch, so it belongs to the question.
            None is `default_batch_size`.
        store: folder of finished units; a second call with it does only what is new.

    Raises:
        UserError: images of another shape, labels out of range, or a twin that differs from the runtime.
        ValueError: a store for a predictor without a hash, whose units nothing could tell from another's.
    """
    if store is not None and not predictor.sha256:
        raise ValueError("expected a predictor with a sha256, which its stored units are kept under")
    check_images(predictor, split)
    batch_size = batch_size or default_batch_size(predictor.input_shape)
    chunks = [slice(start, min(start + CHUNK, len(split))) for start in range(0, len(split), CHUNK)]
    clean_pred, clean_right, digest, hashes = _clean(predictor, split, chunks, batch_size)
    twin, probes = compare_twin(predictor, split, batch_size)
    # Whatever could change an outcome belongs into the question that a stored one answers.
    context = {
        "model": predictor.sha256,
        "interface": predictor.interface.to_dict(),
        "seed": seed,
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "versions": tool_versions(),
        "runtime": predictor.runtime,
        "gpu": torch.cuda.is_available(),
    }
    unfit = _unfit_surrogates(rows, split, batch_size, float(clean_right.mean()))
    units = UnitStore(store)
    outcomes: list[Outcome] = []
    for number, row in enumerate(rows):
        outcome = Outcome(row, reason=unfit.get(row.surrogate.name, "") if row.surrogate else "")
        outcomes.append(outcome)
        if outcome.reason:
            continue
        parts: list[Unit] = []
        for chunk, sha in zip(chunks, hashes, strict=True):
            question = {**context, "images": sha, **_question(row)}
            unit = units.get(question)
            if unit is None:
                attacker = _Attacker(predictor, row, seed, batch_size)
                unit = attacker.run(split, chunk, clean_right[chunk])
                units.put(question, unit)
            parts.append(unit)
            if on_progress:
                broken, attacked = (
                    sum(int(getattr(part, key).sum()) for part in parts) for key in ("broken", "attacked")
                )
                on_progress(Progress(row.id, number + 1, len(rows), chunk.stop, len(split), broken, attacked))
        outcome.unit = _joined(parts, chunks)
        outcome.flags = _flags(row, outcome.unit)
    return Evaluation(
        predictor,
        split.labels,
        split.index,
        clean_pred,
        clean_right,
        outcomes,
        twin,
        probes,
        digest,
        next((row.norm for row in rows if row.eps is not None), "linf"),
        tuple(dict.fromkeys(row.eps for row in rows if row.eps is not None)),
        seed,
        batch_size,
        split,
    )


def default_batch_size(input_shape: tuple[int, int, int]) -> int:
    """As many images as keep the pixels of a batch at about a quarter of a million, 16 to CHUNK.

    It depends on nothing that differs between machines, since it is part of what an evaluation's record answers.
    """
    return max(16, min(CHUNK, 2**18 // (input_shape[1] * input_shape[2])))


@dataclass
class _Attacker:
    """Runs one row on one chunk, counting passes."""

    predictor: Predictor
    row: Row
    seed: int
    batch_size: int

    def run(self, split: Split, chunk: slice, right: NDArray[np.bool_]) -> Unit:
        x_all, labels_all = images_of(split, chunk), split.labels[chunk]
        x, labels, index = x_all[right], labels_all[right], split.index[chunk][right]
        begun = time.perf_counter()
        source = self.row.surrogate.predictor if self.row.surrogate else self.predictor
        assert source is not None
        assert source.module is not None
        counted, calls = Counted(source.module), _Calls(source)
        x_adv, warnings = x, []
        if len(x):
            estimator = to_estimator(replace(source, predict=calls), module=counted)
            budget = Budget(self.row.norm, self.row.eps or 0.0, self.seed, self.batch_size)
            attack = self.row.spec.build(estimator, budget, self.row.params)
            extra = {"index": index} if self.row.spec.indexed else {}
            x_adv = np.asarray(attack.generate(x, labels, **extra), dtype=np.float32)
            warnings = list(getattr(attack, "warnings", []))
        if self.row.eps is not None:
            x_adv = into_ball(x_adv, x, self.row.norm, self.row.eps)
        else:
            x_adv = np.clip(np.where(np.isnan(x_adv), x, x_adv), 0.0, 1.0).astype(np.float32)
        predicted, finite = judge(self.predictor, x_adv, self.batch_size)
        broken = (predicted != labels) | ~finite
        shown = np.flatnonzero(broken)[:GALLERY]
        return Unit(
            attacked=right.copy(),
            broken=_spread(broken, right, False),
            adv_pred=_spread(predicted, right, NOT_ATTACKED),
            l2=_spread(l2(x_adv, x), right, np.nan),
            linf=_spread(linf(x_adv, x), right, np.nan),
            seconds=time.perf_counter() - begun,
            forward_passes=counted.forwards + calls.images + len(x),
            backward_passes=counted.backwards,
            gallery=x_adv[shown],
            gallery_at=np.flatnonzero(right)[shown],
            warnings=warnings,
        )


class _Calls:
    """A predictor's `predict` that counts its images."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.images = 0

    def __call__(self, images: Images) -> Logits:
        self.images += len(images)
        return self.predictor.predict(images)


def _clean(
    predictor: Predictor, split: Split, chunks: Sequence[slice], batch_size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], str, list[str]]:
    """Clean predictions, which are right, and SHA-256 of all images and labels and of each chunk."""
    predictions: list[NDArray[np.int64]] = []
    rights: list[NDArray[np.bool_]] = []
    hashes: list[str] = []
    total = hashlib.sha256()
    for chunk in chunks:
        raw, labels = split.take(chunk), split.labels[chunk]
        content = raw.tobytes() + labels.tobytes() + split.index[chunk].tobytes()
        total.update(content)
        hashes.append(hashlib.sha256(content).hexdigest())
        predicted, finite = judge(predictor, images_of(split, chunk), batch_size)
        predictions.append(predicted)
        rights.append((predicted == labels) & finite)
    return np.concatenate(predictions), np.concatenate(rights), total.hexdigest(), hashes


def _unfit_surrogates(rows: Sequence[Row], split: Split, batch_size: int, accuracy: float) -> dict[str, str]:
    """Names of the surrogates that no transfer row can be run with, and why."""
    reasons: dict[str, str] = {}
    sample = split.subset(min(len(split), 1000))
    for surrogate in {row.surrogate.name: row.surrogate for row in rows if row.surrogate}.values():
        if surrogate.predictor is None:
            reasons[surrogate.name] = surrogate.reason
            continue
        predicted, _ = judge(surrogate.predictor, images_of(sample, slice(None)), batch_size)
        own = float((predicted == sample.labels).mean())
        if own < accuracy - SURROGATE_SLACK:
            reasons[surrogate.name] = (
                f"surrogate {surrogate.name} is right on {own:.1%} of the images, the target on {accuracy:.1%}: "
                f"more than {SURROGATE_SLACK:.0%} worse makes weak examples"
            )
    return reasons


def _question(row: Row) -> dict[str, Any]:
    surrogate = row.surrogate.predictor if row.surrogate else None
    return {
        "attack": row.attack,
        "params": dict(row.params),
        "norm": row.norm,
        "eps": row.eps,
        "surrogate": surrogate.sha256 if surrogate else None,
        "surrogate_interface": surrogate.interface.to_dict() if surrogate else None,
    }


def _spread(values: NDArray[Any], where: NDArray[np.bool_], fill: Any) -> NDArray[Any]:
    """`values` at the places `where`, `fill` elsewhere."""
    result = np.full(len(where), fill, dtype=values.dtype)
    result[where] = values
    return result


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
        warnings=list(dict.fromkeys(text for part in parts for text in part.warnings)),
    )


def _flags(row: Row, unit: Unit) -> list[str]:
    flags = [row.spec.note] if row.spec.note else []
    flags += unit.warnings
    attacked = int(unit.attacked.sum())
    if attacked and float((unit.linf[unit.attacked] > 0).mean()) < 0.01:
        flags.append(IDLE)
    return flags
