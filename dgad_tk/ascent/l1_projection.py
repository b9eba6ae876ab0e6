"""Projection onto the part of an L1 ball that holds images, without a sort."""

import torch
from torch import Tensor

_ITERATIONS = 64
"""Enough to halve the bracket until no number is between its ends. Newton's method takes about eight steps."""
_BLOCK = 2**16
"""Numbers that a CPU works on at a time: few enough for its cache."""


def l1_correction(x: Tensor, delta: Tensor, eps: float | Tensor) -> Tensor:
    """What to add to `delta` for the nearest perturbation with L1 norm at most `eps` and x + delta in [0, 1].

    Croce & Hein, ICML 2021, https://arxiv.org/abs/2103.01208, section 2: Euclidean distance, exact up to rounding. With
    m = |delta| and the excess e >= 0 by which a pixel leaves [0, 1], the nearest point takes clip(a, e, m) off each m,
    where a is the smallest number >= 0 that brings the sum to eps. The sum falls piecewise linearly in a, so Newton's
    method reaches the linear piece with the answer, and then the answer.

    The result is the correction, not the sum: x + delta + correction, added in this order, rounds as the authors' code
    does. Their count of changed pixels depends on the last bit.

    Args:
        x: clean images in [0, 1], `(N, ...)`.
        delta: any perturbation, of x's shape.
        eps: radius, one for all images or one per image `(N,)`.
    """
    flat, away = x.reshape(len(x), -1), delta.reshape(len(x), -1)
    radius = torch.as_tensor(eps, dtype=away.dtype, device=away.device).expand(len(x))[:, None]
    rows = max(1, _BLOCK // max(1, flat.shape[1])) if x.device.type == "cpu" else max(1, len(x))
    parts = [slice(start, start + rows) for start in range(0, len(x), rows)]
    return torch.cat([_correction(flat[part], away[part], radius[part]) for part in parts]).reshape(delta.shape)


def _correction(x: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
    size = delta.abs()
    excess = torch.minimum(1 - x - delta, x + delta).clamp_(max=0).neg_()
    taken = excess.maximum(_threshold(size, excess, radius)).minimum(size)
    return taken.mul_(delta.sign()).neg_()


def _threshold(size: Tensor, excess: Tensor, radius: Tensor) -> Tensor:
    """The smallest a >= 0 with sum(size - clip(a, excess, size)) <= radius, `(N, 1)`."""
    at = torch.zeros_like(radius)
    rounding = 2 * torch.finfo(size.dtype).eps
    low, high = at, size.amax(dim=1, keepdim=True)
    for _ in range(_ITERATIONS):
        taken = excess.maximum(at).minimum(size)
        over = (size - taken).sum(dim=1, keepdim=True) - radius
        slope = taken.eq_(at).sum(dim=1, keepdim=True)  # pixels whose size a larger `a` would reduce
        low, high = torch.where(over > 0, at, low), torch.where(over > 0, high, at)
        newton = at + over / slope
        # Rows that start inside stay at 0. A row is done when only rounding would still move it.
        unequal = (over.abs() > rounding * radius) & ((newton - at).abs() > rounding * at)
        going = ((over > 0) | (at > 0)) & unequal
        # The sum is neither convex nor concave, so Newton's method may jump between two points for ever: bisect then.
        newton = torch.where((newton > low) & (newton < high), newton, 0.5 * (low + high))
        at = torch.where(going, newton, at)
        if not going.any():
            break
    return at
