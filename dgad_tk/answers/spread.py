"""The unit for differences of logits: how far apart an image's logits are, not how large they are.

Scaling all logits, or adding a constant to an image's logits, changes no prediction, so it must change no verdict. A
difference of 1e-6 is nothing among logits that are 10 apart, and much among logits that are 1e-5 apart.
"""

import numpy as np
from numpy.typing import NDArray

from dgad_tk.artifacts.predictor import Logits


def spreads(logits: Logits) -> NDArray[np.float64]:
    """Largest minus smallest logit per image, `(N, K)` to `(N,)`; NaN where one is not finite."""
    finite = np.isfinite(logits).all(axis=1)
    found = np.full(len(logits), np.nan)
    found[finite] = np.ptp(logits[finite].astype(np.float64), axis=1)
    return found


def typical_spread(logits: Logits) -> float:
    """The median of `spreads` over images with finite logits; 0 without any."""
    known = spreads(logits)
    known = known[~np.isnan(known)]
    return float(np.median(known)) if len(known) else 0.0


def yardstick(logits: Logits) -> NDArray[np.float64]:
    """The spread per image, but at least the typical one, `(N, K)` to `(N,)`.

    Where an image's logits are nearly equal, rounding errors do not shrink with their spread.
    """
    return np.asarray(np.fmax(spreads(logits), typical_spread(logits)))


def grain(logits: Logits) -> NDArray[np.float64]:
    """The step of float32 at the logit of largest size per image, `(N,)`. No smaller difference can show."""
    largest = np.abs(np.nan_to_num(logits, nan=0.0, posinf=0.0, neginf=0.0)).max(axis=1, initial=0.0)
    return np.asarray(np.spacing(largest.astype(np.float32)), dtype=np.float64)


def apart(one: Logits, other: Logits) -> NDArray[np.float64]:
    """The largest difference of logits per image, `(N,)`; infinite where they differ and one is not finite."""
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        gap = np.abs(one.astype(np.float64) - other)
    return np.asarray(np.where(same, 0.0, np.nan_to_num(gap, nan=np.inf, posinf=np.inf)).max(axis=1, initial=0.0))
