"""Moves of the Square attack. A square of every image is written in place, and undone where it did not help.

Images are rows of one matrix, so that one gather or scatter with flat positions moves the squares of all images.
`prepare` makes what does not depend on the current points, for many steps at once.

Where the authors' package (`pyautoattack`, its `square.py`) differs from the papers, this follows the package: a corner
is drawn from 0 to size - side - 1, never the last place. The package draws one square for a whole batch, and in Linf
one colour; here every image has its own.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from dgad_tk.ascent.l1_projection import l1_correction
from dgad_tk.config.threat import Norm
from evaluators.attacks.autoattack.square.layout import Layout, pattern
from evaluators.target.ball import bounds

TILES = 5
"""Squares along each side of the grid that the L2 and L1 walks start from."""
_TINY = 1e-12
_SLACK = 1e-6
"""Walks in L2 and L1 stay inside the ball by this share of its radius, because of rounding in float32 sums."""


class Walk(ABC):
    """N points that walk at random in the eps-balls around N images. Each step is `propose`, then `settle`.

    Args:
        x: images, float32 `(N, C, H, W)` in [0, 1].
        eps: radius.

    Attributes:
        points: the current points, float32 `(N, C*H*W)` in the order of `layout`.
        start_shape: of the uniform numbers that `start` takes per image.
        numbers: how many uniform numbers `prepare` takes per image and step.
        copies: squares that a step touches.
        min_side: the smallest square of the search.
        odd: squares have an odd side.
    """

    copies: ClassVar[int] = 1
    min_side: ClassVar[int] = 1
    odd: ClassVar[bool] = False
    start_shape: tuple[int, ...]
    numbers: int
    points: Tensor

    def __init__(self, x: Tensor, eps: float, layout: Layout) -> None:
        self.eps, self.layout = eps, layout
        self.clean = layout.rows(x)

    @abstractmethod
    def start(self, u: Tensor) -> None:
        """Set `points` to where the search begins, from uniform numbers `(N, *start_shape)`."""

    @abstractmethod
    def prepare(self, u: Tensor, side: int) -> None:
        """Make squares of `side` pixels for the next B steps, from uniform numbers `(N, B, numbers)`."""

    @abstractmethod
    def propose(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Proposals `(N, C*H*W)` of a prepared step, and which differ from the points, bool `(N,)`; None means all."""

    @abstractmethod
    def settle(self, accepted: Tensor) -> None:
        """Move to the last proposal where `accepted`, bool `(N,)`."""

    def keep(self, which: Tensor) -> None:
        """Keep only these points. `prepare` has to follow."""
        self.clean, self.points = self.clean[which], self.points[which]


class LinfWalk(Walk):
    """Every pixel is x - eps or x + eps, clipped to [0, 1]. A square sets its pixels in a channel to one of the two.

    Andriushchenko et al., ECCV 2020, https://arxiv.org/abs/1912.00049, Algorithm 2, from vertical stripes.
    """

    def __init__(self, x: Tensor, eps: float, layout: Layout) -> None:
        super().__init__(x, eps, layout)
        self.start_shape, self.numbers = (layout.channels, layout.width), 2 + layout.channels
        ends = (torch.from_numpy(end).to(x.device) for end in bounds(x.cpu().numpy(), eps))
        self.ends = torch.cat([layout.rows(end) for end in ends], dim=1)  # lower ones, then upper ones

    def start(self, u: Tensor) -> None:
        stripes = u[:, :, None, :].expand(-1, -1, self.layout.height, -1) >= 0.5
        lower, upper = self.ends.chunk(2, dim=1)
        self.points = torch.where(self.layout.rows(stripes), upper, lower)

    def prepare(self, u: Tensor, side: int) -> None:
        u = u.transpose(0, 1)
        where = self.layout.squares(self.layout.corners(u[..., :2], side), side)
        end = where + (u[..., 2:, None] >= 0.5) * self.clean.shape[1]
        self.where = where.flatten(2)
        self.fill = self.ends.expand(len(end), -1, -1).gather(2, end.flatten(2))

    def propose(self, step: int) -> tuple[Tensor, Tensor | None]:
        self.now, self.new = self.where[step], self.fill[step]
        self.old = self.points.gather(1, self.now)
        self.points.scatter_(1, self.now, self.new)
        return self.points, (self.old != self.new).any(dim=1)

    def settle(self, accepted: Tensor) -> None:
        self.points.scatter_(1, self.now, torch.where(accepted[:, None], self.new, self.old))

    def keep(self, which: Tensor) -> None:
        super().keep(which)
        self.ends = self.ends[which]


class BudgetWalk(Walk):
    """Perturbations of full norm. A step clears one square, and spends its mass and what is left of eps in another.

    Andriushchenko et al., Algorithm 3, with v = sum |delta|^p for p = 2; Croce & Hein, ICML 2021,
    https://arxiv.org/abs/2103.01208, have the form for p = 1. The search starts from a grid of 5 x 5 squares. Parts of
    the grid beyond the image, as for sides of 8 or 14, are left out.
    """

    p: ClassVar[int]
    copies = 2
    min_side = 3
    odd = True

    def __init__(self, x: Tensor, eps: float, layout: Layout) -> None:
        super().__init__(x, eps, layout)
        self.radius = eps * (1 - _SLACK)
        self.budget = self.radius**2 if self.p == 2 else eps  # of sum |delta|^p
        side = layout.height // TILES
        begin = (layout.height - side * TILES) // 2
        self.tiles = [
            (begin + side * row, begin + side * column, side)
            for row in range(layout.height // side)
            for column in range(layout.width // side)
        ]
        self.start_shape, self.numbers = (len(self.tiles), 1 + layout.channels), 5 + layout.channels

    def start(self, u: Tensor) -> None:
        layout = self.layout
        delta = u.new_zeros(len(u), layout.channels, layout.height, layout.width)
        for tile, (top, left, side) in enumerate(self.tiles):
            place = delta[:, :, top : top + side, left : left + side]
            filling = self._filling(u[:, tile], side).reshape(-1, layout.channels, side, side)
            place.copy_(filling[..., : place.shape[2], : place.shape[3]])
        self.points = self._onto_surface(layout.rows(delta))

    def prepare(self, u: Tensor, side: int) -> None:
        u = u.transpose(0, 1)
        corners = self.layout.corners(u[..., :4].reshape(*u.shape[:2], 2, 2), side)  # (B, N, 2, 2): target, source
        target, source = corners.unbind(dim=2)
        line = torch.arange(side, device=u.device)
        shared = ((source - target)[..., None] + line).clamp(-1, side)  # a source pixel's row and column in the target
        shared = (shared >= 0) & (shared < side)
        self.apart = ~(shared[..., 0, :, None] & shared[..., 1, None, :]).flatten(2)[:, :, None]  # (B, N, 1, side^2)
        self.where = self.layout.squares(corners, side)  # (B, N, 2, C, side^2)
        self.filling = self._filling(u[..., 4:], side)

    def _filling(self, u: Tensor, side: int) -> Tensor:
        """Patterns, upright or turned, with a sign for each channel: `(..., 1 + C)` to `(..., C, side^2)`."""
        upright = pattern(side, self.p).to(u.device)
        both = torch.stack([upright, upright.T]).flatten(1)
        signs = torch.where(u[..., 1:] >= 0.5, 1.0, -1.0)
        return both[(u[..., 0] > 0.5).long()][..., None, :] * signs[..., None]

    def _mass(self, delta: Tensor) -> Tensor:
        """sum |delta|^p over the last dimension."""
        return delta.square().sum(dim=-1) if self.p == 2 else delta.abs().sum(dim=-1)

    def _refilled(self, target: Tensor, source: Tensor, total: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """New perturbation `(N, C, side^2)` of the target square, and the mass `(N, C)` that both squares had.

        Args:
            target, source: the perturbations of both squares, `(N, C, side^2)`.
            total: mass of the whole perturbation, `(N,)`.
        """
        root = torch.sqrt if self.p == 2 else torch.clone
        own = self._mass(target)
        had = own + self._mass(source * self.apart[step])
        new = self.filling[step] + target / (_TINY + root(own))[..., None]
        spare = (self.budget - total).clamp(min=0) / self.layout.channels
        # In L1 the package multiplies a square by the number of channels; the projection removes the excess.
        excess = self.layout.channels if self.p == 1 else 1
        return new * (excess * root(spare[:, None] + had) / (_TINY + root(self._mass(new))))[..., None], had

    @abstractmethod
    def _onto_surface(self, delta: Tensor) -> Tensor:
        """Points `(N, C*H*W)` in [0, 1] for perturbations, which are scaled or projected to the norm eps."""


class L2Walk(BudgetWalk):
    """`BudgetWalk` in place: a step moves mass between two squares, so that no other pixel changes."""

    p = 2

    def _onto_surface(self, delta: Tensor) -> Tensor:
        length = self._mass(delta).sqrt()[:, None]
        return (self.clean + delta * (self.radius / (length + _TINY))).clamp_(0, 1)

    def prepare(self, u: Tensor, side: int) -> None:
        super().prepare(u, side)
        self.where = self.where.flatten(2)
        self.under = self.clean.expand(len(self.where), -1, -1).gather(2, self.where)
        self.total = self._mass(self.points - self.clean)  # anew, as rounding adds up

    def propose(self, step: int) -> tuple[Tensor, Tensor | None]:
        self.now, under = self.where[step], self.under[step]
        self.old = self.points.gather(1, self.now)
        halves = (self.old - under).view(len(under), 2, self.layout.channels, -1)
        new, had = self._refilled(halves[:, 0], halves[:, 1], self.total, step)
        size = new[0].numel()
        fresh = (under[:, :size] + new.flatten(1)).clamp_(0, 1)
        # The target is written last, so it wins where the squares overlap.
        self.points.scatter_(1, self.now[:, size:], under[:, size:]).scatter_(1, self.now[:, :size], fresh)
        self.proposed = self.total + self._mass(fresh - under[:, :size]) - had.sum(dim=1)
        return self.points, None

    def settle(self, accepted: Tensor) -> None:
        # Read again, so that both squares name the same value for a pixel that they share.
        new = self.points.gather(1, self.now)
        self.points.scatter_(1, self.now, torch.where(accepted[:, None], new, self.old))
        self.total = torch.where(accepted, self.proposed, self.total)


class L1Walk(BudgetWalk):
    """`BudgetWalk` with a projection onto the part of the L1 ball that lies in [0, 1]."""

    p = 1

    def _onto_surface(self, delta: Tensor) -> Tensor:
        return self.clean + delta + l1_correction(self.clean, delta, self.radius)

    def propose(self, step: int) -> tuple[Tensor, Tensor | None]:
        target, source = (square.flatten(1) for square in self.where[step].unbind(dim=1))
        delta = self.points - self.clean
        channels = (-1, self.layout.channels, self.where.shape[-1])
        before, cleared = (delta.gather(1, square).view(channels) for square in (target, source))
        new, _ = self._refilled(before, cleared, self._mass(delta), step)
        delta.scatter_(1, source, 0.0).scatter_(1, target, new.flatten(1))
        self.proposal = self._onto_surface(delta)
        return self.proposal, None

    def settle(self, accepted: Tensor) -> None:
        self.points = torch.where(accepted[:, None], self.proposal, self.points)


WALKS: dict[Norm, type[Walk]] = {"linf": LinfWalk, "l2": L2Walk, "l1": L1Walk}
