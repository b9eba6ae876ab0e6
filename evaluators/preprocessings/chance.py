"""Whether answers have to do with the classes at all, or only seem to.

Images of a class resemble each other, and any network answers them alike. One that was never trained still puts all
blue images into one class, and that class may bear the right name, or be given it by a search for an order. So classes
are counted here, not images: how often would other names fit as well?
"""

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from dgad_tk.answers.doubts import CHANCE, NONE, NOWHERE, Classes

Counts = NDArray[np.int64]

DRAWS = 9_999
ENUMERATED = 7
"""Classes up to which all their orders are tried, instead of DRAWS of them."""
FEW, SURE = 6, 0.8
"""Of up to FEW classes some order fits many a network one to one. It is believed from this accuracy on."""
SEARCHES, SEARCHED = 400, 40_000
"""Searches for the best order that chance is judged by; fewer where classes times searches would exceed SEARCHED."""


def above_guessing(right: NDArray[np.bool_], guessing: float, level: float) -> bool:
    """Whether guessing is right on as many images with a probability of at most `level`."""
    from scipy.stats import binom  # takes a second to import

    return bool(binom.sf(int(right.sum()) - 1, len(right), guessing) <= level)


def names_fit(labels: Classes, answers: Classes, order: Classes, tried: int) -> bool:
    """Whether hardly any other assignment of the names to the same answers fits as well.

    Args:
        labels, answers: int64 `(N,)`.
        order: label to answer.
        tried: candidates of which this is the best.
    """
    some = np.unique(labels)
    counts = _counted(labels, answers, some)
    wanted = order[some]
    square = np.where(wanted == NOWHERE, 0, counts[:, np.maximum(wanted, 0)])
    k = len(some)
    if k <= ENUMERATED:
        orders = np.array(list(permutations(range(k))))
    else:
        draws = np.random.Generator(np.random.Philox(k))
        orders = np.vstack([np.arange(k), draws.permuted(np.tile(np.arange(k), (DRAWS, 1)), axis=1)])
    fits = square[np.arange(k), orders].sum(axis=1)
    share = float((fits >= np.trace(square)).mean())
    return share <= max(CHANCE / tried, 1 / math.factorial(min(k, ENUMERATED)))


def one_to_one(labels: Classes, answers: Classes, right: int) -> bool:
    """Whether classes have answers of their own, so that an order that was searched for is believed.

    In networks that do not know the classes, several share an answer. The search is repeated on counts in which each
    class has its answers renamed at random.

    Args:
        right: images right in the order that was found.
    """
    from scipy.optimize import linear_sum_assignment

    some = np.unique(labels)
    if len(some) <= FEW:
        return right >= SURE * len(labels)
    counts = _counted(labels, answers, some)
    draws = np.random.Generator(np.random.Philox(len(some)))
    for _ in range(max(20, min(SEARCHES, SEARCHED // len(some)))):
        renamed = draws.permuted(counts, axis=1)
        rows, columns = linear_sum_assignment(renamed, maximize=True)
        if int(renamed[rows, columns].sum()) >= right:
            return False
    return True


def _counted(labels: Classes, answers: Classes, some: Sequence[int] | Classes) -> Counts:
    """How often each label of `some` is answered how, `(len(some), K)`."""
    known = int(max(answers.max(initial=NONE), np.max(some))) + 1
    counts = np.zeros((int(np.max(some)) + 1, known), dtype=np.int64)
    finite = answers != NONE
    np.add.at(counts, (labels[finite], answers[finite]), 1)
    return np.asarray(counts[np.asarray(some)])
