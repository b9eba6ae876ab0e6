"""The unit for differences of logits: how far apart an image's logits are, not how large they are.

Scaling all logits, or adding a constant to an image's logits, changes no prediction, so it must change no verdict. A
difference of 1e-6 is nothing among logits that are 10 apart, and much among logits that are 1e-5 apart.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dgad_tk.artifacts.predictor import Logits

GRAINS = 64
"""Steps of float32 that logits may differ by besides. If all logits of an image are far from 0, sums of hundreds of
terms are rounded in steps of this size. A check warns of logits that are so large."""
INT8_STEPS = 2
"""Largest difference of logits in quantisation steps: near a rounding boundary a value may fall on either side."""
INT8_LEVELS = 255
"""Steps that logits are assumed to span if the file computes them from integers but gives floats."""


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


def leeway(
    logits: Logits, precision: str, tolerances: Mapping[str, float], *, step: float = 0.0, squashed: bool = False
) -> NDArray[np.float64]:
    """How much another computation of the same logits may differ by rounding, per image, `(N, K)` to `(N,)`.

    Args:
        precision: "fp32", "fp16" or "int8".
        tolerances: by precision of floats, on logits, relative to how far apart they are.
        step: of quantised logits; 0 where nothing says so.
        squashed: the logits are logarithms of probabilities.
    """
    if precision != "int8":
        return np.asarray(tolerances[precision] * yardstick(logits) + GRAINS * grain(logits))
    # A step of one logit changes the logarithm of every probability, and that of its own by twice as much.
    steps = INT8_STEPS * (2 if squashed else 1) + 0.01
    return np.full(len(logits), steps * (step or float(np.ptp(logits)) / INT8_LEVELS))


def without_rounding_of_probabilities(ours: Logits, theirs: Logits, error: float) -> Logits:
    """`ours`, with the entries of `theirs` where both are logarithms of the same probability up to `error`.

    A difference in the logarithm of a tiny probability is no difference in the probability.

    Args:
        error: absolute; 0 for logits that are no logarithms, which stay.
    """
    return np.where(np.abs(np.exp(ours) - np.exp(theirs)) <= error, theirs, ours) if error else ours
