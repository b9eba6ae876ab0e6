"""The eps-ball to the last bit, and distances. NumPy only."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dgad_tk.artifacts.predictor import Images
from dgad_tk.config.threat import Norm


def bounds(x: Images, eps: float) -> tuple[Images, Images]:
    """max(0, x - eps) and min(1, x + eps), rounded inward to float32, so that no later test needs a tolerance."""
    wide = x.astype(np.float64)
    lower64, upper64 = np.maximum(wide - eps, 0.0), np.minimum(wide + eps, 1.0)
    lower, upper = lower64.astype(np.float32), upper64.astype(np.float32)
    lower = np.where(lower < lower64, np.nextafter(lower, np.float32(2)), lower)
    upper = np.where(upper > upper64, np.nextafter(upper, np.float32(-1)), upper)
    return lower, upper


def into_ball(x_adv: Images, x: Images, norm: Norm, eps: float) -> Images:
    """`x_adv` brought into the ball around `x` and into [0, 1]; NaN becomes the clean value."""
    x_adv = np.where(np.isnan(x_adv), x, x_adv).astype(np.float32)
    if norm == "linf":
        return np.clip(x_adv, *bounds(x, eps))
    x_adv = np.clip(x_adv, 0.0, 1.0)
    if norm == "l0":
        return _few(x_adv, x, eps)
    distance = DISTANCES[norm](x_adv, x)
    # Rounding to float32 moves each pixel by up to 2^-25, so points are scaled to a ball that is smaller by that.
    pixels = x[0].size if len(x) else 0
    inner = max(0.0, eps - 2.0**-25 * (math.sqrt(pixels) if norm == "l2" else pixels))
    outside = distance > eps
    scale = np.where(outside, inner / np.maximum(distance, 1e-30), 1.0)[:, None, None, None]
    shrunk = x + (x_adv.astype(np.float64) - x) * scale
    return np.clip(np.where(outside[:, None, None, None], shrunk, x_adv), 0.0, 1.0).astype(np.float32)


def l0(x_adv: Images, x: Images) -> NDArray[np.float64]:
    """Number of values of each image that differ, of all channels, `(N,)`."""
    return np.asarray((x_adv != x).sum(axis=(1, 2, 3)), dtype=np.float64)


def l1(x_adv: Images, x: Images) -> NDArray[np.float64]:
    """Sum of the pixel differences of each image, `(N,)`."""
    return np.asarray(np.abs(x_adv.astype(np.float64) - x).sum(axis=(1, 2, 3)))


def l2(x_adv: Images, x: Images) -> NDArray[np.float64]:
    """Euclidean distance of each image, `(N,)`."""
    gap = x_adv.astype(np.float64) - x
    return np.asarray(np.sqrt(np.square(gap).sum(axis=(1, 2, 3))))


def linf(x_adv: Images, x: Images) -> NDArray[np.float64]:
    """Largest pixel difference of each image, `(N,)`."""
    gap = np.abs(x_adv.astype(np.float64) - x)
    return np.asarray(gap.max(axis=(1, 2, 3), initial=0.0))


DISTANCES: dict[Norm, Callable[[Images, Images], NDArray[np.float64]]] = {"linf": linf, "l2": l2, "l1": l1, "l0": l0}
"""The distance of each image in each norm, exact up to the rounding of float64."""


def _few(x_adv: Images, x: Images, eps: float) -> Images:
    """`x_adv` with no more than `eps` values changed: those that changed most, of equal ones the first."""
    change = np.abs(x_adv.astype(np.float64) - x).reshape(len(x), -1)
    if eps >= change.shape[1]:
        return x_adv
    place = np.argsort(-change, axis=1, kind="stable")[:, int(eps) :]
    found, clean = x_adv.reshape(change.shape).copy(), x.reshape(change.shape)
    np.put_along_axis(found, place, np.take_along_axis(clean, place, axis=1), axis=1)
    return found.reshape(x.shape)
