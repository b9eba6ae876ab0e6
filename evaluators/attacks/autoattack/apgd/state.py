"""The state of APGD's ascents, one per row, and their steps in Linf and L2.

Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690, section 3 and algorithm 1. Images are rows here, `(N, F)`.
Every field of a state is a tensor with one row per ascent, so that an ascent can be put into another one's row.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar, Self

import torch
from torch import Tensor

from dgad_tk.ascent.directions import in_range

MOMENTUM = 0.75
"""Weight of the new step; the last movement has the rest."""
RISES = 0.75
"""An ascent that rose in no more than this share of its steps since the last checkpoint oscillates."""
_ZERO = 1e-12


@dataclass(kw_only=True)
class Ascents(ABC):
    """The state and the steps that all norms have.

    Attributes:
        x: clean images `(N, F)`.
        radius: eps, `(N, 1)`.
        y, target: labels and the classes to move to, int64 `(N,)`.
        point: where each ascent is, `(N, F)`; `gradient` belongs to it after `observe`.
        step_size: `(N, 1)`.
        best: the point of highest loss, `(N, F)`; `best_gradient` and `best_loss` `(N,)` belong to it.
    """

    x: Tensor
    radius: Tensor
    y: Tensor
    target: Tensor
    point: Tensor
    step_size: Tensor
    gradient: Tensor = field(init=False)
    best: Tensor = field(init=False)
    best_gradient: Tensor = field(init=False)
    best_loss: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.gradient, self.best_gradient = torch.zeros_like(self.point), torch.zeros_like(self.point)
        self.best, self.best_loss = self.point.clone(), torch.full_like(self.radius[:, 0], -math.inf)

    @staticmethod
    @abstractmethod
    def windows(steps: int) -> list[int]:
        """For 0 to `steps` steps done: the steps since the last checkpoint if there is one now, else 0."""

    @classmethod
    @abstractmethod
    def begin(cls, x: Tensor, noise: Tensor, radius: Tensor, y: Tensor, target: Tensor) -> Self:
        """Ascents around clean images `x`, `(N, F)`. They start at `x + noise`, brought into the ball."""

    def put(self, rows: Tensor, other: "Ascents") -> None:
        """Let the ascents of `other` take the places `rows`."""
        for each in fields(self):
            getattr(self, each.name).index_copy_(0, rows, getattr(other, each.name))

    def keep(self, rows: Tensor) -> None:
        """Drop all but `rows`."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name).index_select(0, rows))

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        """Record loss and gradient of `point`; where this loss is the highest yet, bool `(N,)`. `improve` follows."""
        self.gradient = gradient
        improved = loss > self.best_loss
        self.best_loss = torch.where(improved, loss, self.best_loss)
        return improved

    def improve(self, rows: Tensor) -> None:
        """Make the points of these rows their best."""
        self.best.index_copy_(0, rows, self.point.index_select(0, rows))
        self.best_gradient.index_copy_(0, rows, self.gradient.index_select(0, rows))

    def go_back(self, rows: Tensor) -> None:
        """Go on from the best points of these rows."""
        self.point.index_copy_(0, rows, self.best.index_select(0, rows))
        self.gradient.index_copy_(0, rows, self.best_gradient.index_select(0, rows))

    @abstractmethod
    def check(self, window: Tensor) -> Tensor:
        """Adapt step sizes where `window` `(N,)`, the steps since the last checkpoint, is not 0.

        Returns:
            The rows that have to go back to their best point, bool `(N,)`.
        """

    @abstractmethod
    def advance(self) -> None:
        """Take one step in every row. It overwrites `gradient`."""


@dataclass(kw_only=True)
class MomentumAscents(Ascents):
    """With momentum, and a step size that is halved where an ascent oscillates or stalls (section 3.1).

    Attributes:
        previous: the point before.
        weight: of the new step, `(N, 1)`; 1 at the first, which has no movement behind it.
        last_loss: at the point before, `(N,)`; infinite before the first.
        rises: steps since the last checkpoint that raised the loss, `(N,)`.
        checked_loss: the best loss at the last checkpoint, `(N,)`.
        halved: whether the step size was halved then, `(N,)`.
    """

    ord: ClassVar[float]

    previous: Tensor = field(init=False)
    weight: Tensor = field(init=False)
    last_loss: Tensor = field(init=False)
    rises: Tensor = field(init=False)
    checked_loss: Tensor = field(init=False)
    halved: Tensor = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.previous, self.weight = self.point.clone(), torch.ones_like(self.radius)
        self.rises, self.checked_loss = torch.zeros_like(self.best_loss), torch.zeros_like(self.best_loss)
        self.last_loss, self.halved = self.rises + math.inf, self.rises > 0

    @staticmethod
    def windows(steps: int) -> list[int]:
        window, done = max(int(0.22 * steps), 1), 0
        found = [0] * (steps + 1)
        while (done := done + window) <= steps:
            found[done] = window
            window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
        return found

    @classmethod
    def begin(cls, x: Tensor, noise: Tensor, radius: Tensor, y: Tensor, target: Tensor) -> Self:
        """Ascents that start where `noise`, scaled to the length of the radius, leads from `x`."""
        point = (x + radius * (noise / (_length(noise, cls.ord) + _ZERO))).clamp_(0, 1)
        return cls(x=x, radius=radius, y=y, target=target, point=point, step_size=2 * radius)

    def observe(self, loss: Tensor, gradient: Tensor) -> Tensor:
        start = self.last_loss == math.inf
        self.rises += loss > self.last_loss
        self.checked_loss = torch.where(start, loss, self.checked_loss)
        # The authors' record of losses begins after the first step and takes what was before it for 0.
        self.last_loss = torch.where(start, 0.0, loss)
        return super().observe(loss, gradient)

    def check(self, window: Tensor) -> Tensor:
        due = window > 0
        oscillates = self.rises <= RISES * window
        stalls = ~self.halved & (self.checked_loss >= self.best_loss)
        halve = due & (oscillates | stalls)
        self.halved = torch.where(due, halve, self.halved)
        self.checked_loss = torch.where(due, self.best_loss, self.checked_loss)
        self.rises = torch.where(due, 0.0, self.rises)
        self.step_size = torch.where(halve[:, None], 0.5 * self.step_size, self.step_size)
        return halve

    def advance(self) -> None:
        target = self._into_ball(self._stepped())
        # x + a (target - x) + (1 - a) (x - previous) = (1 - a) (2 x - previous) + a target, in the place of `previous`
        moved = self.previous.lerp_(self.point, 2.0).lerp_(target, self.weight)
        self.previous, self.point = self.point, self._into_ball(moved)
        self.weight.fill_(MOMENTUM)

    @abstractmethod
    def _stepped(self) -> Tensor:
        """`point` plus a step along the gradient. It overwrites `gradient`, since new memory would cost time."""

    @abstractmethod
    def _into_ball(self, point: Tensor) -> Tensor:
        """Projected, in place."""


@dataclass(kw_only=True)
class LinfAscents(MomentumAscents):
    """Steps along the sign of the gradient, in the box from `low` to `high`."""

    ord = math.inf

    low: Tensor = field(init=False)
    high: Tensor = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.low, self.high = (self.x - self.radius).clamp_(min=0), (self.x + self.radius).clamp_(max=1)

    def _stepped(self) -> Tensor:
        return torch.addcmul(self.point, self.gradient.sign_(), self.step_size, out=self.gradient)

    def _into_ball(self, point: Tensor) -> Tensor:
        return torch.clamp(point, self.low, self.high, out=point)


@dataclass(kw_only=True)
class L2Ascents(MomentumAscents):
    """Steps along the normalised gradient, in the ball around `x`; then clipped to [0, 1], as in the authors' code."""

    ord = 2.0

    def _stepped(self) -> Tensor:
        self.gradient = in_range(self.gradient)
        scale = self.step_size / (_length(self.gradient, self.ord) + _ZERO)
        return torch.addcmul(self.point, self.gradient, scale, out=self.gradient)

    def _into_ball(self, point: Tensor) -> Tensor:
        away = point.sub_(self.x)
        length = _length(away, self.ord)
        return away.mul_(torch.minimum(self.radius, length) / (length + _ZERO)).add_(self.x).clamp_(0, 1)


def _length(vectors: Tensor, ord: float) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(vectors, ord=ord, dim=1, keepdim=True)
    return length
