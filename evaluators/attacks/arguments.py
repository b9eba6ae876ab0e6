"""The arguments of an attack: every usual form is understood, everything else is refused.

An argument that is misread makes the model look more robust than it is: a label of no class can never be left, and
images of another range are clipped towards the ball. So nothing is guessed. Every attack, ours or another library's,
checks its arguments here.
"""

import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from art.estimators.classification.classifier import ClassifierMixin
from numpy.typing import ArrayLike, NDArray

from dgad_tk.config.threat import Norm

ROUNDING = 1e-6
"""A pixel may be so far outside [0, 1], as after resizing or in float16. It is clipped."""


def check_ball(norm: Norm, eps: float) -> None:
    """Check a norm, and a radius in it. Images are in [0, 1], whatever the range of the files they come from.

    Raises:
        ValueError: an unknown norm; a radius that is negative, not finite, or in Linf above 1.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"expected norm linf, l2, l1 or l0, got {norm!r}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"expected eps >= 0, got {eps}")
    if norm == "linf" and eps > 1:
        raise ValueError(f"expected eps in [0, 1], a fraction of the pixels' range such as 8/255, got {eps}")


def at_least(least: int, **values: float) -> None:
    """Check settings by name.

    Raises:
        ValueError: a value is below `least`, or NaN.
    """
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"expected {name} >= {least}, got {value}")


def images_of_caller(estimator: ClassifierMixin, x: ArrayLike) -> NDArray[np.float32]:
    """Images `(N, C, H, W)` in [0, 1] as a contiguous float32 array, without a copy where possible.

    Raises:
        ValueError: integers, another shape, or values that are not finite or outside [0, 1] by more than rounding.
    """
    given = np.asarray(x)
    if given.dtype.kind != "f":
        raise ValueError(f"expected images of floats in [0, 1], got {given.dtype}: divide grey levels by 255")
    shape = tuple(getattr(estimator, "input_shape", given.shape[1:]))
    if given.ndim != 4 or given.shape[1:] != shape:
        expected = "(N, " + ", ".join(map(str, shape)) + ")"
        raise ValueError(f"expected images of shape {expected}, got {given.shape}")
    images = np.ascontiguousarray(given, dtype=np.float32)
    if images.size == 0:
        return images
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("expected images in [0, 1], got pixels that are not finite")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"expected images in [0, 1], got pixels from {low:g} to {high:g}: divide by 255, and leave normalisation "
            "to the model"
        )
    return images if low >= 0 and high <= 1 else images.clip(0, 1)


def labels_of_caller(
    estimator: ClassifierMixin, x: NDArray[np.float32], y: ArrayLike | Sequence[Any] | None
) -> NDArray[np.int64]:
    """Labels, or the classes that a targeted attack is to reach, as int64 `(N,)`.

    Args:
        x: the images `(N, C, H, W)`.
        y: whole numbers `(N,)` or `(N, 1)`, or one-hot `(N, K)`. None takes the estimator's predictions.

    Raises:
        ValueError: another shape, a number that is not a class, or a row that is not one-hot.
    """
    classes = int(estimator.nb_classes)
    if y is None:
        return np.ascontiguousarray(np.asarray(estimator.predict(x)).argmax(axis=1), dtype=np.int64)
    given = np.asarray(y)
    if given.dtype.kind not in "biuf":
        raise ValueError(f"expected labels as numbers, got {given.dtype}")
    if given.shape == (len(x), classes) and classes > 1:
        if not (np.isin(given, (0, 1)).all() and (given.sum(axis=1) == 1).all()):
            raise ValueError("expected one-hot labels, got rows that are not one 1 among zeros")
        return np.ascontiguousarray(given.argmax(axis=1), dtype=np.int64)
    if given.shape not in ((len(x),), (len(x), 1)):
        shapes = f"({len(x)},), ({len(x)}, 1) or one-hot ({len(x)}, {classes})"
        raise ValueError(f"expected labels of shape {shapes}, got {given.shape}")
    given = given.reshape(len(x))
    with np.errstate(invalid="ignore"):  # NaN becomes some number, which NaN does not equal
        labels = given.astype(np.int64)
    if (odd := np.flatnonzero((labels != given) | (labels < 0) | (labels >= classes))).size:
        raise ValueError(f"expected labels from 0 to {classes - 1}, got {given[odd[0]]} for image {odd[0]}")
    return labels


def index_of_caller(count: int, index: ArrayLike | None) -> NDArray[np.int64]:
    """Dataset indices that draws belong to, int64 `(count,)`. None counts from 0.

    Raises:
        ValueError: another shape, or other than whole numbers.
    """
    if index is None:
        return np.arange(count, dtype=np.int64)
    given = np.asarray(index)
    if given.shape != (count,) or given.dtype.kind not in "iu":
        raise ValueError(f"expected indices, {count} whole numbers, got {given.dtype} of shape {given.shape}")
    return np.ascontiguousarray(given, dtype=np.int64)
