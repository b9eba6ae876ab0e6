"""The one inner maximisation: projected gradient ascent on a loss that the caller gives.

PGD-AT, TRADES, AdaAD, DGAD and the PGD evaluation differ in that loss and in the start, in nothing else.

    x'_0     = start
    x'_{k+1} = Pi( x'_k + step_size * direction(grad_x sum_i loss_i(x'_k)) )

Pi projects onto the eps-ball around x and then onto [0, 1]; direction is the sign for Linf and the unit vector for L2
(Madry et al., ICLR 2018, section 2.1). Entries of a gradient that are not finite are put in place first
(`dgad_tk.directions`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from dgad_tk.config import ThreatModel
from dgad_tk.directions import finite, unit

Objective = Callable[[Tensor], Tensor]
"""Images `(N, C, H, W)` to a loss a sample `(N,)`, to be made large."""

Init = Literal["gauss", "uniform", "none"]
"""Start of the ascent: x + 0.001 N(0, 1); uniform in the ball; x itself."""

Noise = Callable[[Literal["normal", "uniform"]], Tensor]
"""Draws of the images' shape: standard normal, or uniform on [-1, 1]."""


def start_point(x: Tensor, threat: ThreatModel, init: Init, noise: Noise, *, clip: bool = False) -> Tensor:
    """Where the ascent begins, `(N, C, H, W)`.

    Args:
        clip: cut the start to [0, 1], as the PGD-AT of the AdaAD code does; the distillation attacks take their first
            gradient just outside.
    """
    if init == "none":
        return x
    if init == "gauss":
        start = x + 0.001 * noise("normal")
    elif threat.norm == "linf":
        start = x + threat.eps * noise("uniform")
    else:
        direction = noise("normal")
        # The radius of a uniform point of a d-dimensional ball is a d-th root, so nearly eps for every image.
        start = x + threat.eps * direction / _norms(direction)
    return start.clamp(0, 1) if clip else start


def inner_max(objective: Objective, x: Tensor, start: Tensor, threat: ThreatModel) -> Tensor:
    """Images in the eps-ball around `x` with a large `objective`, detached, `(N, C, H, W)` in [0, 1].

    The last iterate, as in every released code of the paper's comparison: no best-of-steps, no restarts. An empty
    batch comes back as it is.
    """
    x_adv = start.detach()
    if len(x) == 0:
        return x_adv
    # Clipping to the ball and then to [0, 1] is one clip, since x lies in both.
    lower, upper = (x - threat.eps).clamp(min=0), (x + threat.eps).clamp(max=1)
    for _ in range(threat.steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(x_adv).sum(), x_adv)
        x_adv, gradient = x_adv.detach(), finite(gradient)
        if threat.norm == "linf":
            x_adv = (x_adv + threat.step_size * gradient.sign()).clamp(lower, upper)
        else:
            delta = x_adv + threat.step_size * unit(gradient) - x
            x_adv = (x + delta * (threat.eps / _norms(delta)).clamp(max=1)).clamp(0, 1)
    return x_adv


@contextmanager
def in_train_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into train mode and back."""
    before = model.training
    model.train()
    try:
        yield
    finally:
        model.train(before)


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Put BatchNorm's running statistics back to what they were."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _norms(x: Tensor) -> Tensor:
    """L2 norm of each image, `(N, 1, 1, 1)`, never 0."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.clamp(min=1e-12).view(-1, 1, 1, 1)
