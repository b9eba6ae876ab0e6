"""Gradients made fit to be followed: where they lead must not hang on an entry that is no number, nor on their size.

One infinite entry, such as the slope of a square root at a black pixel, makes the norm of an image's gradient infinite
and its unit vector zero or NaN. One that is NaN spreads over the image with the next step. Either would end the search
for that image, and an image that nothing looks for counts as robust.
"""

import torch
from torch import Tensor


def finite(gradient: Tensor) -> Tensor:
    """The gradient `(N, ...)` with each entry finite; the very tensor where that holds already.

    NaN, which has no direction, becomes 0. An infinite entry keeps its sign and gets the size of its image's largest
    finite one, or 1 where there is none but 0: large, and no reason to forget the rest.
    """
    # On a GPU the answer would have to be waited for; there the same is computed without asking.
    if gradient.device.type == "cpu" and bool(gradient.sum().isfinite()):
        return gradient
    usable = torch.where(gradient.isfinite(), gradient, 0)
    largest = usable.flatten(1).abs().amax(dim=1)
    largest = _per_image(torch.where(largest > 0, largest, 1), gradient)
    return torch.where(gradient.isinf(), torch.copysign(largest, gradient), usable)


def in_range(gradient: Tensor) -> Tensor:
    """The gradient `(N, ...)`, finite, with each image's brought to a size that can be squared; else as it is.

    The direction is the same for a model whose logits are a million times smaller or larger, and so must the step be.
    Of an image whose L2 norm is very small, the squares are rounded away or drown in a divisor's 1e-12; where it is
    very large, their sum overflows. Such a gradient is divided by its largest entry.
    """
    return _brought(gradient, _norms(gradient))


def unit(gradient: Tensor) -> Tensor:
    """Each image's gradient `(N, ...)`, finite, over its L2 norm; zero stays zero."""
    norms = _norms(gradient)
    brought = _brought(gradient, norms)
    if brought is not gradient:
        norms = _norms(brought)
    return brought / torch.where(norms > 0, norms, 1)


def _brought(gradient: Tensor, norms: Tensor) -> Tensor:
    info = torch.finfo(gradient.dtype)
    usual = (norms > info.eps) & (norms < info.max**0.5)
    if gradient.device.type == "cpu" and bool(usual.all()):
        return gradient
    largest = _per_image(gradient.flatten(1).abs().amax(dim=1), gradient)
    return gradient / torch.where(usual | (largest == 0), 1, largest)


def _norms(gradient: Tensor) -> Tensor:
    return _per_image(torch.linalg.vector_norm(gradient.flatten(1), dim=1), gradient)


def _per_image(values: Tensor, gradient: Tensor) -> Tensor:
    """`(N,)` in the shape that goes with a gradient, whose order in memory is then kept."""
    return values.view(-1, *[1] * (gradient.dim() - 1))
