"""Tries candidates on images: all of them on the first few, then only those that may still win.

After each round a candidate is dropped if another one is right on surely more images, where both are given the order of
classes that suits them best on these images. What is dropped would hardly have won: of candidates that are all equally
good, simulated, the one that is ahead in the end is dropped once in a hundred times at most, for one as good.
From ENOUGH images on, one that is no better than guessing is dropped too, so that a file that nothing fits takes no
longer than one that something fits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dgad_tk.answers.doubts import NONE, Classes, is_common, other_order, outnumbers, right_at_best
from dgad_tk.artifacts.predictor import Images, Logits, Predictor
from dgad_tk.artifacts.preprocessing import UNIT_RANGE, Interface
from dgad_tk.common import UserError
from dgad_tk.data import Split
from evaluators.preprocessings.chance import above_guessing, one_to_one
from evaluators.preprocessings.table import Candidate
from evaluators.target.judge import check_images, images_of

FIRST = 32
"""Images of the first round. Each round has as many images as all before it."""
ENOUGH, PER_CLASS = 64, 6
"""Images, and images per class, after which what still is no better than guessing is given up."""
HOPE = 0.05
"""How seldom guessing may get as many right for a candidate to be kept: one in twenty of those that only guess is."""

Progress = Callable[[int, int, int], None]
"""Images done, of how many, and candidates that are left."""


@dataclass(frozen=True)
class Trial:
    """A candidate and the classes that it was answered with.

    Attributes:
        answers: for the first images of the split, int64 `(n,)`; NONE where logits are not finite.
    """

    candidate: Candidate
    answers: Classes


def feed(
    predictor: Predictor, candidate: Candidate, reopen: Callable[[Interface], Predictor]
) -> Callable[[Images], Logits] | None:
    """What answers images `(N, C, H, W)` in [0, 1] after this preprocessing; None if the file cannot be fed so.

    The images are changed in front of the file that is open already. Only a file whose input is 8-bit numbers is opened
    again, since how pixels become these numbers depends on the normalisation.

    Args:
        predictor: the file, opened as it is.
        reopen: opens it with another interface.
    """
    wanted = candidate.interface
    if takes_bytes(predictor) and (wanted.mean or wanted.std or wanted.input_range != UNIT_RANGE):
        if not wanted.mean and not wanted.std and wanted.input_range == predictor.interface.input_range:
            return None  # it is given these grey levels as it is
        try:
            return reopen(wanted).predict
        except UserError:  # its graph does not say what numbers pixels become: only grey levels remain
            return None
    change = wanted.preprocessing(predictor.input_shape[0])

    def predict(images: Images) -> Logits:
        with torch.no_grad():
            changed: Images = change(torch.from_numpy(images)).numpy()
        return predictor.predict(np.ascontiguousarray(changed))

    return predict


def takes_bytes(predictor: Predictor) -> bool:
    """Whether a file, opened as it is, is given grey levels because its input is of 8 bits."""
    return predictor.artifact is None and predictor.interface.input_range != UNIT_RANGE


def try_all(
    predictor: Predictor,
    found: Sequence[Candidate],
    split: Split,
    names: Sequence[str],
    *,
    reopen: Callable[[Interface], Predictor],
    on_progress: Progress | None = None,
) -> list[Trial]:
    """Each candidate that the file can be fed by, with its answers, in the order given.

    Args:
        split: the images to try them on, at most.
        names: of the classes, in the order of the labels.

    Raises:
        UserError: the images do not fit the file.
    """
    check_images(predictor, split)
    feeds = [(each, answer) for each in found if (answer := feed(predictor, each, reopen)) is not None]
    answers: list[Classes] = [np.empty(0, np.int64)] * len(feeds)
    left, done = list(range(len(feeds))), 0
    guess = guessing_on(split.labels, predictor.classes)
    while left and done < len(split):
        until = min(len(split), max(FIRST, 2 * done))
        for start in range(done, until, FIRST):
            images = images_of(split, slice(start, min(until, start + FIRST)))
            for number, at in enumerate(left):
                answers[at] = np.concatenate([answers[at], _answers(feeds[at][1], images)])
                if on_progress:
                    on_progress(start + len(images) * (number + 1) // len(left), len(split), len(left))
        done = until
        labels = split.labels[:done]
        left = _may_win(left, answers, labels, names)
        if done >= ENOUGH and (done >= PER_CLASS * len(names) or len(split) < PER_CLASS * len(names)):
            left = [at for at in left if _has_hope(labels, answers[at], names, guess)]
    return [Trial(candidate, given) for (candidate, _), given in zip(feeds, answers, strict=True)]


def _answers(answer: Callable[[Images], Logits], images: Images) -> Classes:
    logits = np.asarray(answer(images))
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), NONE).astype(np.int64)


def _may_win(left: Sequence[int], answers: Sequence[Classes], labels: Classes, names: Sequence[str]) -> list[int]:
    """Those of `left` that no other is surely better than."""
    right = {at: right_at_best(labels, answers[at], names) for at in left}
    leader = max(left, key=lambda at: np.count_nonzero(right[at]))
    return [at for at in left if not surely_better(right[leader], right[at])]


def guessing_on(labels: Classes, classes: int) -> float:
    """What guessing gets right: the share of the largest class, and at least one over the number of classes."""
    return max(1 / classes, float(np.bincount(labels).max() / len(labels)))


def _has_hope(labels: Classes, answers: Classes, names: Sequence[str], guess: float) -> bool:
    """Whether answers may be better than guessing, in the order of the labels or in one that is convincing."""
    if above_guessing(answers == labels, guess, HOPE):
        return True
    order = other_order(labels, answers, names)
    if order is None or not (is_common(order.order, names) or one_to_one(labels, answers, order.after)):
        return False
    return above_guessing(answers == order.order[labels], guess, HOPE)


def surely_better(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Whether the first is right on more of the same images than the second, by more than chance."""
    return outnumbers(int((one & ~other).sum()), int((other & ~one).sum()))
