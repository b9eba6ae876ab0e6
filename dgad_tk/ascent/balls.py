"""The eps-balls in which images are attacked: their random points, steps of the ascent, and the projection.

A step is the steepest ascent in the norm, and its length in the norm is the step size: signs for Linf, the unit vector
for L2 (Madry et al., ICLR 2018, section 2.1). For L1 the steepest ascent changes a single pixel; `L1Ball` changes more.
Gradients are finite (`dgad_tk.ascent.directions`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dgad_tk.ascent.directions import unit
from dgad_tk.ascent.l1_projection import l1_correction
from dgad_tk.config.threat import Norm, ThreatModel

Noise = Callable[[Literal["normal", "uniform"]], Tensor]
"""Draws of the images' shape: standard normal, or uniform on [-1, 1)."""

SPARSITY = 100
"""An L1 step changes one in this number of the values of an image."""


@dataclass(frozen=True)
class Ball(ABC):
    """All images `(N, C, H, W)` in [0, 1] at most `eps` away from others in one norm."""

    eps: float

    @abstractmethod
    def random_point(self, x: Tensor, noise: Noise) -> Tensor:
        """A point of the ball around `x`, which may lie outside [0, 1]."""

    @abstractmethod
    def step(self, x_adv: Tensor, gradient: Tensor, size: float) -> Tensor:
        """`x_adv` moved by `size` along the gradient; the result may lie outside the ball."""

    @abstractmethod
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`x_adv` moved into the ball around `x` and into [0, 1]."""


class LinfBall(Ball):
    def random_point(self, x: Tensor, noise: Noise) -> Tensor:
        return x + self.eps * noise("uniform")

    def step(self, x_adv: Tensor, gradient: Tensor, size: float) -> Tensor:
        return x_adv + size * gradient.sign()

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        # Clipping to the ball and then to [0, 1] is one clip, since x lies in both.
        return x_adv.clamp((x - self.eps).clamp(min=0), (x + self.eps).clamp(max=1))


class L2Ball(Ball):
    """Random points lie at a distance of eps, as nearly all points of a ball with so many dimensions do.

    The same holds for `L1Ball`.
    """

    def random_point(self, x: Tensor, noise: Noise) -> Tensor:
        direction = noise("normal")
        return x + self.eps * direction / _norms(direction, 2)

    def step(self, x_adv: Tensor, gradient: Tensor, size: float) -> Tensor:
        return x_adv + size * unit(gradient)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        delta = x_adv - x
        return (x + delta * (self.eps / _norms(delta, 2)).clamp(max=1)).clamp(0, 1)


class L1Ball(Ball):
    """Sparse L1 descent (Tramèr & Boneh, NeurIPS 2019, https://arxiv.org/abs/1904.13000, section 3 and algorithm 1).

    A step changes the values with the largest hundredth of the gradient by equal amounts, except those that it would
    push out of [0, 1]. The projection is onto the part of the ball in [0, 1] (Croce & Hein, ICML 2021); the authors of
    the descent project onto the ball and clip.
    """

    def random_point(self, x: Tensor, noise: Noise) -> Tensor:
        u = noise("uniform")
        # Laplace noise is equally likely in all directions of one L1 norm. The smallest uniform draw is -1.
        direction = -u.sign() * torch.log1p(-u.abs().clamp(max=1 - 2.0**-24))
        return x + self.eps * direction / _norms(direction, 1)

    def step(self, x_adv: Tensor, gradient: Tensor, size: float) -> Tensor:
        blocked = ((x_adv <= 0) & (gradient < 0)) | ((x_adv >= 1) & (gradient > 0))
        usable = torch.where(blocked, 0, gradient)
        sizes = usable.flatten(1).abs()
        least = sizes.topk(-(-sizes.shape[1] // SPARSITY), dim=1).values[:, -1]
        signs = usable.sign() * (usable.abs() >= least.view(-1, 1, 1, 1))
        return x_adv + size * signs / _norms(signs, 1)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        delta = x_adv - x
        return (x + delta + l1_correction(x, delta, self.eps)).clamp(0, 1)


BALLS: dict[Norm, type[Ball]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}


def ball_of(threat: ThreatModel) -> Ball:
    """The ball of a threat model."""
    return BALLS[threat.norm](threat.eps)


def _norms(x: Tensor, p: int) -> Tensor:
    """The norm of each image, `(N, 1, 1, 1)`, never 0."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), ord=p, dim=1)
    return norms.clamp(min=1e-12).view(-1, 1, 1, 1)
