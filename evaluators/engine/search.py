"""One attack on one chunk of images: the search on its source, the verdict by the deployed runtime of the target."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.artifacts.predictor import Images, Logits, Predictor
from dgad_tk.common import UserError, reason_of
from evaluators.attacks.halfway import Halfway
from evaluators.attacks.result import SearchResult
from evaluators.attacks.spec import Budget
from evaluators.engine.units import NOT_ATTACKED, Unit
from evaluators.plan.rows import Row
from evaluators.target.ball import into_ball, l2, linf
from evaluators.target.estimators import Counted, to_estimator
from evaluators.target.judge import judge

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
class Candidates(SearchResult):
    """What a row's attack found, not yet brought into the ball, and what that took.

    Attributes:
        seconds: of the search.
        forwards, backwards: images that passed through the source, both ways.
    """

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0

    def only(self, where: NDArray[np.bool_]) -> "Candidates":
        """Candidates of the images where `where` is true, for another model than the one they were found on."""
        return replace(self, adversarials=self.adversarials[where], broken_by=None, stages=[], stage_seconds=[])


def search(source: Predictor, row: Row, chunk: Chunk, *, seed: int, batch_size: int, halfway: Halfway) -> Candidates:
    """Let the row's attack look for adversarial images of `source`.

    Raises:
        RowFailedError: another library's attack did not come to its end. What ours raises is a bug, and stays one.
    """
    if len(chunk.labels) == 0:
        return Candidates(chunk.images)
    meter = _Meter(source, halfway)
    budget = Budget(row.norm, row.eps or 0.0, seed, batch_size)
    index = None if row.spec.foreign else chunk.index
    with _failing(row):
        attack = row.spec.ready(row.attack, meter.estimator, budget, row.params)
        found = attack.run(chunk.images, chunk.labels, index=index, halfway=meter)
        shape = np.shape(found.adversarials)
        if shape != chunk.images.shape:
            raise ValueError(f"it answered images of shape {chunk.images.shape} with {shape}")
    forwards, backwards, seconds = meter.spent
    return Candidates(**vars(found), seconds=seconds, forwards=forwards, backwards=backwards)


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
    found: Candidates,
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
    x_adv = into_ball(found.adversarials, asked.images, row.norm, math.inf if row.eps is None else row.eps)
    answers = judge(target, x_adv, batch_size)
    broken = ~answers.right(asked.labels)
    by = np.full(len(broken), -1, dtype=np.int8) if found.broken_by is None else found.broken_by
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
        broken_by=_spread(np.where(broken, by, np.int8(-1)), todo, -1),
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


class _Meter(Halfway):
    """Counts what a search takes, and keeps that with what the attack keeps, so that none of it is lost.

    Args:
        source: the model that is searched on.
        halfway: where the attack keeps what it has.

    Attributes:
        estimator: of the source; what passes through it is counted.
    """

    def __init__(self, source: Predictor, halfway: Halfway) -> None:
        super().__init__(halfway.path)
        self._source, self._begun, self._asked = source, time.perf_counter(), 0
        self._before = (0, 0, 0.0)
        self._counted = Counted(source.module) if source.module is not None else None
        self.estimator = to_estimator(replace(source, predict=self._predict), module=self._counted)

    def _predict(self, images: Images) -> Logits:
        self._asked += len(images)
        return self._source.predict(images)

    @property
    def spent(self) -> tuple[int, int, float]:
        """Images that passed forward and backward, and seconds, those before the process was killed included."""
        forwards, backwards, seconds = self._before
        if self._counted is not None:
            forwards, backwards = forwards + self._counted.forwards, backwards + self._counted.backwards
        return forwards + self._asked, backwards, seconds + time.perf_counter() - self._begun

    def get(self) -> dict[str, Any] | None:
        kept = super().get()
        if kept is not None:
            self._before = kept.pop("spent")
        return kept

    def put(self, **values: Any) -> None:
        super().put(**values, spent=self.spent)


def _spread(values: NDArray[Any], where: NDArray[np.bool_], fill: Any) -> NDArray[Any]:
    """`values` at the places `where`, `fill` elsewhere."""
    result = np.full(len(where), fill, dtype=values.dtype)
    result[where] = values
    return result
