"""One attack on one chunk of images: the search on its source, the verdict by the deployed runtime of the target."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from art.estimators.classification.classifier import ClassifierMixin
from numpy.typing import NDArray

from dgad_tk.common import UserError, reason_of
from dgad_tk.predictor import Images, Logits, Predictor
from evaluators.attacks import Budget
from evaluators.ball import into_ball, l2, linf
from evaluators.estimators import Counted, to_estimator
from evaluators.judge import judge
from evaluators.rows import Row
from evaluators.units import NOT_ATTACKED, Halfway, Unit

GALLERY = 8
"""Adversarial images that a unit keeps, if it keeps any."""


@dataclass(frozen=True)
class Chunk:
    """The images of a unit: float32 `(N, C, H, W)`, labels and dataset indices `(N,)`."""

    images: Images
    labels: NDArray[np.int64]
    index: NDArray[np.int64]

    def only(self, where: NDArray[np.bool_]) -> "Chunk":
        """Those `where` is true."""
        return Chunk(self.images[where], self.labels[where], self.index[where])


class RowFailedError(Exception):
    """Another library's attack raised, or gave back what are no images; the message says what."""


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        images: float32, a candidate for each image, not yet brought into the ball.
        forwards, backwards: images that passed through the source, both ways.
        broken_by, stages, stage_seconds: of an ensemble, as in `Unit`.
    """

    images: Images
    seconds: float
    forwards: int
    backwards: int
    broken_by: NDArray[np.int8]
    stages: list[str]
    stage_seconds: list[float]
    warnings: list[str]

    def only(self, where: NDArray[np.bool_]) -> "Found":
        """Candidates of the images where `where` is true, for another model than the one they were found on."""
        none = np.full(int(where.sum()), -1, dtype=np.int8)
        return replace(self, images=self.images[where], broken_by=none, stages=[], stage_seconds=[])


def search(source: Predictor, row: Row, chunk: Chunk, *, seed: int, batch_size: int, halfway: Halfway) -> Found:
    """Let the row's attack look for adversarial images of `source`.

    Raises:
        RowFailedError: another library's attack did not come to its end. What ours raises is a bug, and stays one.
    """
    begun = time.perf_counter()
    passes = _Passes(source)
    if len(chunk.labels) == 0:
        return Found(chunk.images, 0.0, 0, 0, np.zeros(0, np.int8), [], [], [])
    budget = Budget(row.norm, row.eps or 0.0, seed, batch_size)
    with _failing(row):
        attack = row.spec.build(passes.estimator, budget, row.params)
        if hasattr(attack, "halfway"):
            attack.halfway = _Counting(halfway, passes)
        extra = {"index": chunk.index} if row.spec.indexed else {}
        x_adv = np.asarray(attack.generate(chunk.images, chunk.labels, **extra), dtype=np.float32)
        if x_adv.shape != chunk.images.shape:
            raise ValueError(f"it answered images of shape {chunk.images.shape} with {x_adv.shape}")
    none = np.full(len(chunk.labels), -1, dtype=np.int8)
    return Found(
        x_adv,
        time.perf_counter() - begun + passes.seconds,
        passes.forwards,
        passes.backwards,
        getattr(attack, "broken_by", none),
        list(getattr(attack, "stages", ())),
        list(getattr(attack, "stage_seconds", ())),
        list(getattr(attack, "warnings", ())),
    )


@contextmanager
def _failing(row: Row) -> Iterator[None]:
    try:
        yield
    except UserError:  # the user can do something about it, such as install the library
        raise
    except Exception as error:  # what another library's attack raises is not known beforehand
        if not row.spec.foreign:
            raise
        raise RowFailedError(f"{type(error).__name__}: {reason_of(error)}") from error


def verdict(
    target: Predictor,
    row: Row,
    chunk: Chunk,
    right: NDArray[np.bool_],
    todo: NDArray[np.bool_],
    found: Found,
    *,
    batch_size: int,
    gallery: bool,
) -> Unit:
    """Bring candidates into the ball and ask the target's runtime.

    Args:
        right: bool `(N,)`, images of the chunk that the target gets right when clean.
        todo: of these, the ones judged now; `found` has a candidate for each.
    """
    asked = chunk.only(todo)
    begun = time.perf_counter()
    if row.eps is not None:
        x_adv = into_ball(found.images, asked.images, row.norm, row.eps)
    else:
        x_adv = np.clip(np.where(np.isnan(found.images), asked.images, found.images), 0.0, 1.0).astype(np.float32)
    answers = judge(target, x_adv, batch_size)
    broken = ~answers.right(asked.labels)
    shown = np.flatnonzero(broken)[: GALLERY if gallery else 0]
    return Unit(
        attacked=right.copy(),
        broken=_spread(broken, todo, False),
        adv_pred=_spread(answers.predicted, todo, NOT_ATTACKED),
        l2=_spread(l2(x_adv, asked.images), todo, np.nan),
        linf=_spread(linf(x_adv, asked.images), todo, np.nan),
        seconds=found.seconds + time.perf_counter() - begun,
        forward_passes=found.forwards + int(todo.sum()),
        backward_passes=found.backwards,
        gallery=x_adv[shown],
        gallery_at=np.flatnonzero(todo)[shown],
        # A stage's own verdict is the search's; a row's is the target's.
        broken_by=_spread(np.where(broken, found.broken_by, np.int8(-1)), todo, -1),
        stages=found.stages,
        stage_seconds=found.stage_seconds,
        warnings=found.warnings,
    )


def with_smaller(unit: Unit, smaller: Unit) -> Unit:
    """`unit`, which attacked what `smaller` had left, with what that broke at a smaller radius."""
    known = smaller.broken

    def merged(name: str) -> Any:
        return np.where(known, getattr(smaller, name), getattr(unit, name))

    fields = ("broken", "adv_pred", "l2", "linf", "broken_by")
    return replace(unit, **{name: merged(name) for name in fields}, reused=int(known.sum()))


class _Passes:
    """An estimator of a predictor, and how many images went through it."""

    def __init__(self, source: Predictor) -> None:
        self._source = source
        self._asked = 0
        self._before = (0, 0)
        self.seconds = 0.0
        self._counted = Counted(source.module) if source.module is not None else None
        self.estimator: ClassifierMixin = to_estimator(replace(source, predict=self._predict), module=self._counted)

    def _predict(self, images: Images) -> Logits:
        self._asked += len(images)
        return self._source.predict(images)

    @property
    def forwards(self) -> int:
        return self._before[0] + self._asked + (self._counted.forwards if self._counted else 0)

    @property
    def backwards(self) -> int:
        return self._before[1] + (self._counted.backwards if self._counted else 0)

    def add(self, forwards: int, backwards: int, seconds: float) -> None:
        """Count what was done before the process was killed."""
        self._before, self.seconds = (forwards, backwards), seconds


class _Counting(Halfway):
    """A Halfway that keeps the passes and the time with what the attack keeps, so that none are lost."""

    def __init__(self, halfway: Halfway, passes: _Passes) -> None:
        super().__init__(halfway.path)
        self._passes, self._begun = passes, time.perf_counter()

    def get(self) -> dict[str, Any] | None:
        kept = super().get()
        if kept is not None:
            self._passes.add(*kept.pop("passes"))
        return kept

    def put(self, **values: Any) -> None:
        seconds = self._passes.seconds + time.perf_counter() - self._begun
        super().put(**values, passes=[self._passes.forwards, self._passes.backwards, seconds])


def _spread(values: NDArray[Any], where: NDArray[np.bool_], fill: Any) -> NDArray[Any]:
    """`values` at the places `where`, `fill` elsewhere."""
    result = np.full(len(where), fill, dtype=values.dtype)
    result[where] = values
    return result
