"""One attack on one chunk of images: a search on the source, then the judgement of the target's deployed runtime."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.answers.doubts import NOT_ATTACKED
from dgad_tk.artifacts.predictor import Images, Logits, Predictor
from dgad_tk.common import UserError, reason_of
from evaluators.attacks.array_file import ArrayFile
from evaluators.attacks.result import SearchResult
from evaluators.attacks.spec import Budget
from evaluators.engine.units import Unit
from evaluators.plan.rows import Row
from evaluators.target.ball import DISTANCES, into_ball, l2, linf
from evaluators.target.estimators import Counted, to_estimator
from evaluators.target.judge import judge
from evaluators.target.precision import Precision

GALLERY, GALLERY_VALUES = 24, 2**21
"""Adversarial images that a unit keeps, if it keeps any; of large images fewer, so that they hold no more numbers."""


@dataclass(frozen=True)
class Chunk:
    """N images that one unit of work is about.

    Attributes:
        images: float32 `(N, C, H, W)`.
        labels, index: labels, and places in the dataset, int64 `(N,)`.
        right: bool `(N,)`, the target's clean predictions that are right.
        smaller: what the same row found at a smaller radius, if that is known.
    """

    images: Images
    labels: NDArray[np.int64]
    index: NDArray[np.int64]
    right: NDArray[np.bool_]
    smaller: Unit | None = None

    @property
    def todo(self) -> NDArray[np.bool_]:
        """The images to attack: those that are right, and that no smaller radius has broken."""
        return self.right if self.smaller is None else self.right & ~self.smaller.broken

    def only(self, where: NDArray[np.bool_]) -> "Chunk":
        """The images where `where` is true."""
        return Chunk(self.images[where], self.labels[where], self.index[where], self.right[where])


class RowFailedError(Exception):
    """Another library's attack raised an error, or its answer is not images. The message says what happened."""


@dataclass(frozen=True)
class Candidates(SearchResult):
    """What a row's attack found, before it is brought into the ball, and what the search cost.

    Attributes:
        seconds: of the search.
        forwards, backwards: images that passed forward and backward through the source.
    """

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0

    def only(self, where: NDArray[np.bool_]) -> "Candidates":
        """The candidates where `where` is true, to be tried on another model than the one they were found on."""
        return replace(self, adversarials=self.adversarials[where], broken_by=None, stages=[], stage_seconds=[])


def search(source: Predictor, row: Row, chunk: Chunk, *, seed: int, batch_size: int, halfway: ArrayFile) -> Candidates:
    """Let the row's attack look for adversarial images of `source`.

    Raises:
        RowFailedError: another library's attack failed. An error in an attack of ours is a bug, and passes through.
    """
    if len(chunk.labels) == 0:
        return Candidates(chunk.images)
    meter = _Meter(source, halfway, row.search_precision)
    budget = Budget(row.norm, row.eps or 0.0, seed, batch_size)
    index = None if row.spec.foreign else chunk.index
    try:
        attack = row.spec.ready(row.attack, meter.estimator, budget, row.params)
        found = attack.run(chunk.images, chunk.labels, index=index, halfway=meter)
        shape = np.shape(found.adversarials)
        if shape != chunk.images.shape:
            raise ValueError(f"it answered images of shape {chunk.images.shape} with {shape}")
    except UserError:  # the user can do something about it, such as install the library
        raise
    except Exception as error:  # what another library's attack raises is not known beforehand
        if not row.spec.foreign:
            raise
        raise RowFailedError(f"{type(error).__name__}: {reason_of(error)}") from error
    forwards, backwards, seconds = meter.spent
    return Candidates(**vars(found), seconds=seconds, forwards=forwards, backwards=backwards)


def unit_of(target: Predictor, row: Row, chunk: Chunk, found: Candidates, *, batch_size: int, gallery: bool) -> Unit:
    """Bring candidates into the ball and ask the target's runtime.

    Args:
        found: a candidate for each image in `chunk.todo`.
        gallery: keep some of the images that broke.
    """
    todo, smaller = chunk.todo, chunk.smaller
    asked = chunk.only(todo)
    begun = time.perf_counter()
    x_adv = into_ball(found.adversarials, asked.images, row.norm, math.inf if row.eps is None else row.eps)
    answers = judge(target, x_adv, batch_size)
    broken = ~answers.right(asked.labels)
    by = np.full(len(broken), -1, dtype=np.int8) if found.broken_by is None else found.broken_by
    distance = l2(x_adv, asked.images)
    most = max(8, min(GALLERY, GALLERY_VALUES // max(1, math.prod(x_adv.shape[1:]))))
    shown = np.empty(0, dtype=np.int64)
    if gallery:
        shown = telling(np.flatnonzero(broken), distance, answers.confidence, asked.labels)[:most]

    def spread(name: str, values: NDArray[Any], fill: Any) -> NDArray[Any]:
        """`values` at the places `todo`; elsewhere what the smaller radius has, or `fill`."""
        result = np.full(len(todo), fill, values.dtype) if smaller is None else getattr(smaller, name).copy()
        result[todo] = values
        return np.asarray(result)

    return Unit(
        attacked=chunk.right.copy(),
        broken=spread("broken", broken, False),
        adv_pred=spread("adv_pred", answers.predicted, NOT_ATTACKED),
        confidence=spread("confidence", answers.confidence, np.nan),
        l2=spread("l2", distance, np.nan),
        linf=spread("linf", linf(x_adv, asked.images), np.nan),
        distance=spread("distance", DISTANCES[row.norm](x_adv, asked.images), np.nan),
        seconds=found.seconds + time.perf_counter() - begun,
        forward_passes=found.forwards + len(broken),
        backward_passes=found.backwards,
        gallery=x_adv[shown],
        gallery_at=np.flatnonzero(todo)[shown],
        # The search says which stage broke an image; the target says whether it broke.
        broken_by=spread("broken_by", np.where(broken, by, np.int8(-1)), -1),
        reused=0 if smaller is None else int(smaller.broken.sum()),
        stages=found.stages,
        stage_seconds=found.stage_seconds,
        warnings=found.warnings,
    )


def telling(
    broken: NDArray[np.int64],
    distance: NDArray[np.float64],
    confidence: NDArray[np.float32],
    labels: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The places `broken`, those first that tell most: in turns the nearest, the most confident, the least confident
    that still broke, and one of a class that is not there yet.

    Args:
        distance, confidence, labels: of all images, `(N,)`.
    """
    by_confidence = broken[np.argsort(confidence[broken], kind="stable")]
    _, first = np.unique(labels[broken], return_index=True)
    orders = [
        broken[np.argsort(distance[broken], kind="stable")],
        by_confidence[::-1],
        by_confidence,
        np.concatenate([broken[np.sort(first)], broken]),
    ]
    turns = [each for turn in zip_longest(*(order.tolist() for order in orders)) for each in turn if each is not None]
    return np.array(list(dict.fromkeys(turns)), dtype=np.int64)


class _Meter(ArrayFile):
    """Counts what a search costs. The count is stored with what the attack stores, so that a resumed search goes on.

    Args:
        source: the model that is searched on.
        halfway: where the attack stores what it has.
        precision: in which the module is run.

    Attributes:
        estimator: of the source. Images that pass through it are counted.
    """

    def __init__(self, source: Predictor, halfway: ArrayFile, precision: Precision) -> None:
        super().__init__(halfway.path)
        self._begun, self._asked = time.perf_counter(), 0
        self._before = (0, 0, 0.0)
        self._counted = Counted(source.module) if source.module is not None else None
        search = None if source.search is None else self._counting(source.search)
        self._siblings = {name: Counted(each.module) for name, each in source.siblings.items() if each.module}
        siblings = {name: replace(source.siblings[name], module=module) for name, module in self._siblings.items()}
        counting = replace(source, predict=self._counting(source.predict), search=search, siblings=siblings)
        self.estimator = to_estimator(counting, module=self._counted, search_precision=precision)

    def _counting(self, ask: Callable[[Images], Logits]) -> Callable[[Images], Logits]:
        def counted(images: Images) -> Logits:
            self._asked += len(images)
            return ask(images)

        return counted

    @property
    def spent(self) -> tuple[int, int, float]:
        """Images that passed forward and backward, and seconds. What a killed process spent before is included."""
        forwards, backwards, seconds = self._before
        for counted in [*([self._counted] if self._counted else []), *self._siblings.values()]:
            forwards, backwards = forwards + counted.forwards, backwards + counted.backwards
        return forwards + self._asked, backwards, seconds + time.perf_counter() - self._begun

    def get(self) -> dict[str, Any] | None:
        kept = super().get()
        if kept is not None:
            self._before = kept.pop("spent")
        return kept

    def put(self, **values: Any) -> None:
        super().put(**values, spent=self.spent)
