"""APGD's ascents in L1: sparse steps, whose density follows the best perturbation so far.

Croce & Hein, ICML 2021, https://arxiv.org/abs/2103.01208, section 3.
"""

import math
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from dgad_tk.ascent.l1_projection import l1_correction
from evaluators.attacks.autoattack.apgd.state import Ascents

_WIDER = ((3.0, 0.3), (2.0, 0.3))
"""Radii before the true one (section 3.3): multiples of eps, and the share of the steps in each."""
_DENSITY = 0.2
_PER_CHANGED = 1.5
"""A step changes as many pixels as the best perturbation does, divided by this."""
_SHRINK, _SMALLEST = 1.5, 0.1
"""The step size is divided by the first at each checkpoint, down to this share of the radius."""
_SPARSER = 0.95
"""If a perturbation has become sparser than this share of before, its step size becomes the radius again."""


@dataclass(kw_only=True)
class L1Ascents(Ascents):
    """Steps along the sign of the largest entries of the gradient.

    Attributes:
        density: share of the pixels that a step changes, `(N,)`.
        checked: pixels that `best` changed at the last checkpoint, `(N,)`.
        changed: pixels that it changes, `(N,)`.
    """

    density: Tensor
    checked: Tensor
    changed: Tensor = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.changed = torch.zeros_like(self.checked)

    @staticmethod
    def windows(steps: int) -> list[int]:
        every = max(int(0.04 * steps), 1)
        return [0, *(every if step % every == 0 else 0 for step in range(1, steps + 1))]

    @classmethod
    def begin(cls, x: Tensor, noise: Tensor, radius: Tensor, y: Tensor, target: Tensor) -> Self:
        """Ascents that start at `noise`, projected."""
        point = (x + noise + l1_correction(x, noise, radius[:, 0])).clamp_(0, 1)
        every = torch.full_like(radius[:, 0], x.shape[1])
        where = {"x": x, "radius": radius, "y": y, "target": target, "point": point}
        return cls(**where, step_size=radius.clone(), density=torch.full_like(every, _DENSITY), checked=every)

    @classmethod
    def begin_wide(cls, x: Tensor, noise: Tensor, radius: Tensor, y: Tensor, target: Tensor) -> Self:
        """The same for the first of falling radii: the density is that of the start."""
        point = x + noise
        # `resume` projects again. That changes last bits only, but the authors' code counts changed pixels after it.
        return cls.resume(x, point + l1_correction(x, point - x, radius[:, 0]), radius, y, target)

    @classmethod
    def resume(cls, x: Tensor, point: Tensor, radius: Tensor, y: Tensor, target: Tensor) -> Self:
        """Ascents that start at `point`, brought into this radius."""
        point = (point + l1_correction(x, point - x, radius[:, 0])).clamp_(0, 1)
        changed = _count(point, x)
        where = {"x": x, "radius": radius, "y": y, "target": target, "point": point}
        density = changed / x.shape[1] / _PER_CHANGED
        return cls(**where, step_size=radius.clone(), density=density, checked=changed)

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        improved = super().observe(loss, gradient)
        self.changed = torch.where(improved, _count(self.point, self.x), self.changed)
        return improved

    def check(self, window: Tensor) -> Tensor:
        due = window > 0
        sparser = self.changed / self.checked < _SPARSER
        step_size = torch.where(sparser[:, None], self.radius, self.step_size / _SHRINK)
        step_size = torch.minimum(step_size.maximum(_SMALLEST * self.radius), self.radius)
        self.step_size = torch.where(due[:, None], step_size, self.step_size)
        self.density = torch.where(due, self.changed / self.x.shape[1] / _PER_CHANGED, self.density)
        self.checked = torch.where(due, self.changed, self.checked)
        return due & sparser

    def advance(self) -> None:
        size, pixels = self.gradient.abs(), self.x.shape[1]
        rank = pixels - ((1.0 - self.density) * pixels).clamp_(0, pixels - 1).long()
        largest = size.topk(int(rank.max()), dim=1).values.gather(1, rank[:, None] - 1)
        signs = self.gradient.sign_().mul_(size >= largest)
        steps = self.step_size / (torch.linalg.vector_norm(signs, ord=1, dim=1, keepdim=True) + 1e-10)
        away = torch.addcmul(self.point, signs, steps).sub_(self.x)
        self.point = self.x + away + l1_correction(self.x, away, self.radius[:, 0])


def _count(point: Tensor, x: Tensor) -> Tensor:
    """How many pixels differ, float32 `(N,)`: exact below 2^24."""
    return (point != x).sum(dim=1, dtype=torch.int32).to(point.dtype)


def falling_radii(steps: int) -> list[tuple[float, int]]:
    """The schedule of radii: multiples of eps, falling to 1, and the steps in each."""
    wider = [(factor, math.ceil(share * steps)) for factor, share in _WIDER]
    return [*wider, (1.0, max(steps - sum(count for _, count in wider), 0))]
