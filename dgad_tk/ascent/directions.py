"""Gradients made fit to follow: one entry that is not finite, or a very small or large norm, must not end a search.

An infinite entry, such as the slope of a square root at a black pixel, makes the norm of an image's gradient infinite
and its unit vector zero or NaN. A NaN spreads over the whole image with the next step. Either ends the search for an
adversarial example, and the image would count as robust.
"""

import torch
from torch import Tensor


def finite(gradient: Tensor) -> Tensor:
    """The gradient `(N, ...)` with each entry finite; the same tensor if all are.

    NaN has no direction and becomes 0. An infinite entry keeps its sign and takes the size of the largest finite entry
    of its image, or 1 if all of these are 0. So it is large and does not hide the rest.
    """
    # A GPU would have to be waited for to know whether all are finite; so there every gradient is treated.
    if _asking_is_free(gradient) and bool(gradient.sum().isfinite()):
        return gradient
    usable = torch.where(gradient.isfinite(), gradient, 0)
    largest = usable.flatten(1).abs().amax(dim=1)
    largest = _per_image(torch.where(largest > 0, largest, 1), gradient)
    return torch.where(gradient.isinf(), torch.copysign(largest, gradient), usable)


def in_range(gradient: Tensor) -> Tensor:
    """The finite gradient `(N, ...)`, with each image's divided by its largest entry if its L2 norm is extreme.

    A model whose logits are a million times smaller or larger has the same directions, and must get the same steps.
    But where the norm is very small, squares are rounded to 0 or vanish beside a divisor's 1e-12; where it is very
    large, their sum overflows.
    """
    return _brought(gradient, _norms(gradient))


def unit(gradient: Tensor) -> Tensor:
    """The finite gradient `(N, ...)`, each image's divided by its L2 norm; zero stays zero."""
    norms = _norms(gradient)
    brought = _brought(gradient, norms)
    if brought is not gradient:
        norms = _norms(brought)
    return brought / torch.where(norms > 0, norms, 1)


def _brought(gradient: Tensor, norms: Tensor) -> Tensor:
    info = torch.finfo(gradient.dtype)
    usual = (norms > info.eps) & (norms < info.max**0.5)
    if _asking_is_free(gradient) and bool(usual.all()):
        return gradient
    largest = _per_image(gradient.flatten(1).abs().amax(dim=1), gradient)
    return gradient / torch.where(usual | (largest == 0), 1, largest)


def _asking_is_free(gradient: Tensor) -> bool:
    """Whether a number can be looked at without waiting for a device."""
    return gradient.device.type == "cpu"


def _norms(gradient: Tensor) -> Tensor:
    return _per_image(torch.linalg.vector_norm(gradient.flatten(1), dim=1), gradient)


def _per_image(values: Tensor, gradient: Tensor) -> Tensor:
    """`(N,)` as `(N, 1, ...)`, which broadcasts against the gradient and keeps its memory layout."""
    return values.view(-1, *[1] * (gradient.dim() - 1))
