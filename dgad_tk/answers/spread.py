"""What differences of logits are measured by: how far apart an image's logits are, not how large.

Multiplying all logits by a number, or adding one to all of an image's, changes no prediction. So it must change no
verdict: a difference of 1e-6 is nothing among logits that are 10 apart, and much among logits that are 1e-5 apart.
"""

import numpy as np
from numpy.typing import NDArray

from dgad_tk.artifacts.predictor import Logits


def spreads(logits: Logits) -> NDArray[np.float64]:
    """The largest less the smallest logit of each image, `(N, K)` to `(N,)`; NaN where one is not finite."""
    finite = np.isfinite(logits).all(axis=1)
    found = np.full(len(logits), np.nan)
    found[finite] = np.ptp(logits[finite].astype(np.float64), axis=1)
    return found


def typical_spread(logits: Logits) -> float:
    """The median of `spreads`; 0 where there is none."""
    known = spreads(logits)
    known = known[~np.isnan(known)]
    return float(np.median(known)) if len(known) else 0.0


def yardstick(logits: Logits) -> NDArray[np.float64]:
    """The spread of each image's logits, but at least the typical one, `(N, K)` to `(N,)`.

    The typical one stands in where an image's own logits are nearly equal, since what a network rounds does not shrink
    with them, and where they are not finite.
    """
    return np.asarray(np.fmax(spreads(logits), typical_spread(logits)))


def grain(logits: Logits) -> NDArray[np.float64]:
    """The step of float32 at each image's largest logit in size, `(N,)`: no smaller difference can show there."""
    largest = np.abs(np.nan_to_num(logits, nan=0.0, posinf=0.0, neginf=0.0)).max(axis=1, initial=0.0)
    return np.asarray(np.spacing(largest.astype(np.float32)), dtype=np.float64)


def apart(one: Logits, other: Logits) -> NDArray[np.float64]:
    """The largest difference of each image's logits, `(N,)`; infinite where only one of the two is a number."""
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        gap = np.abs(one.astype(np.float64) - other)
    return np.asarray(np.where(same, 0.0, np.nan_to_num(gap, nan=np.inf, posinf=np.inf)).max(axis=1, initial=0.0))
