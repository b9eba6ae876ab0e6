"""Shares of images, and how sure they are."""

import math


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson, JASA 22, 1927); (0, 1) of nothing."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share, shrink = successes / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    return max(0.0, middle - half), min(1.0, middle + half)
