"""Two models, or two attacks, on the same images: their difference, and whether it is more than chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

CHANCE = 0.05
"""A difference with a smaller p is more than chance."""


@dataclass(frozen=True)
class Paired:
    """A difference of two accuracies on the same images.

    Attributes:
        difference: first minus second, a fraction of all images.
        ci95: its 95 % interval, within -1 and 1.
        only_first, only_second: images that only one of the two got right.
        p: exact McNemar test: the probability of a split of these at least as uneven if neither is better.
    """

    difference: float
    ci95: tuple[float, float]
    only_first: int
    only_second: int
    n: int
    p: float


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Compare two outcomes `(n,)` of the same images.

    The interval is Agresti & Min's (Statistics in Medicine, 2005): Wald's interval after half an image is added to each
    of the four cells, cut off at -1 and 1. So it keeps a width even if the two never differ. It and p are of different
    methods, which may disagree where p is near 0.05; p decides.

    Raises:
        ValueError: different numbers of images, or no images.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(f"expected two outcomes of the same images, got shapes {first.shape} and {second.shape}")
    n = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    b, c, total = only_first + 0.5, only_second + 0.5, n + 2
    centre = (b - c) / total
    half = 1.959964 * math.sqrt((b + c) - (b - c) ** 2 / total) / total
    p = min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))
    ends = max(-1.0, centre - half), min(1.0, centre + half)
    return Paired((only_first - only_second) / n, ends, only_first, only_second, n, p)


def holm(p: Sequence[float]) -> list[float]:
    """The values of p, each adjusted for all of them by Holm's method (Scandinavian Journal of Statistics, 1979).

    Where one rejects what is adjusted to less than 0.05, the probability of a single false rejection is below 0.05,
    however the tests depend on each other.
    """
    adjusted, least = [0.0] * len(p), 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=lambda at: p[at])):
        least = max(least, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = least
    return adjusted
