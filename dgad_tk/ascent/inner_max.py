"""The one inner maximisation: projected gradient ascent on a loss that the caller gives.

PGD-AT, TRADES, AdaAD, DGAD and the PGD evaluation differ only in that loss and in the start.

    x'_0     = start
    x'_{k+1} = Pi( step( x'_k, grad_x sum_i loss_i(x'_k) ) )

The ball of the threat model gives the step and the projection Pi (`dgad_tk.ascent.balls`). Entries of the gradient
that are not finite are replaced first (`dgad_tk.ascent.directions`).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dgad_tk.ascent.balls import Noise, ball_of
from dgad_tk.ascent.directions import finite
from dgad_tk.config.threat import ThreatModel
from dgad_tk.draws import Draws

Objective = Callable[[Tensor], Tensor]
"""From images `(N, C, H, W)` to the loss per sample `(N,)` that the ascent maximises."""

Init = Literal["gauss", "uniform", "none"]
"""Start of the ascent: `gauss` is x + 0.001 N(0, 1), `uniform` a random point of the ball, `none` x itself."""


def start_point(x: Tensor, threat: ThreatModel, init: Init, noise: Noise, *, clip: bool = False) -> Tensor:
    """Where the ascent begins, `(N, C, H, W)`.

    Args:
        clip: cut the start to [0, 1], as PGD-AT in the AdaAD code does. The distillation attacks do not, and take their
            first gradient slightly outside.
    """
    if init == "none":
        return x
    start = x + 0.001 * noise("normal") if init == "gauss" else ball_of(threat).random_point(x, noise)
    return start.clamp(0, 1) if clip else start


def inner_max(objective: Objective, x: Tensor, start: Tensor, threat: ThreatModel, *, momentum: float = 0.0) -> Tensor:
    """Images in the eps-ball around `x` with a large `objective`, detached, `(N, C, H, W)` in [0, 1].

    This is the last iterate, as in every released code of the paper's comparison: no best of the steps, no restarts.

    Args:
        momentum: m of MIM (Dong et al., CVPR 2018, https://arxiv.org/abs/1710.06081, algorithm 1): steps follow
            g_k = m g_{k-1} + gradient_k / |gradient_k|_1. At 0 they follow the gradient.
    """
    x_adv, ball, gathered = start.detach(), ball_of(threat), torch.zeros_like(x)
    if len(x) == 0:
        return x_adv
    for _ in range(threat.steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(x_adv).sum(), x_adv)
        x_adv, gradient = x_adv.detach(), finite(gradient)
        if momentum:
            size = gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
            gathered = momentum * gathered + gradient / size.clamp(min=torch.finfo(gradient.dtype).tiny)
            gradient = gathered
        x_adv = ball.project(ball.step(x_adv, gradient, threat.step_size), x)
    return x_adv


def draw_noise(
    draws: Draws, purpose: str, shape: tuple[int, ...], index: Tensor, kind: str, *, epoch: int = 0, step: int = 0
) -> Tensor:
    """Start noise of an attack, `(len(index), *shape)`: standard normal, or uniform on [-1, 1)."""
    if kind == "normal":
        return draws.normal(purpose, tuple(shape), index=index, epoch=epoch, step=step)
    return 2 * draws.uniform(purpose, tuple(shape), index=index, epoch=epoch, step=step) - 1
