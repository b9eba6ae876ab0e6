"""The nearest point of a hyperplane inside the box [0, 1]^D, in Linf, L2 and L1. FAB computes two per step.

FAB, Croce & Hein, ICML 2020, https://arxiv.org/abs/1907.02044, section 3.1 and appendix A, sorts the break points of a
piecewise linear function of all D coordinates. Nothing is sorted here. With a point t where <w, t> - b = c, every
coordinate moves against sign(c) w_i, by an s_i between 0 and its room r_i up to the box, such that

    sum_i |w_i| s_i = |c|    with    s_i = min(lambda, r_i)          Linf
                                     s_i = min(lambda |w_i|, r_i)    L2
                                     s_i = r_i for the largest |w_i|, what is left of |c| for the next one    L1

For Linf and L2 the left side is a concave, piecewise linear function of lambda. Newton's iteration climbs to the root
without overshooting, and is exact once it is on the right piece; on images that takes two passes, seldom four. L1 needs
the few largest weights. Where the hyperplane misses the box, s = r, which leads to the nearest corner.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dgad_tk.config.threat import Norm

SMALLEST_WEIGHT = 1e-8
"""In L2 and L1 a coordinate moves only if its weight is larger, as in the authors' code."""
_ROUNDING = 1e-6
_NEWTON_STEPS = 64
_FAR = 1e30
_FIRST_LARGEST = 32


class Hyperplane:
    """Hyperplanes {z: <w, z> = b}, one per row, and what projections of several points onto them share.

    Args:
        w: normals, `(N, D)`, finite. A point with a zero normal does not move.
        norm: of the distance.
    """

    def __init__(self, w: Tensor, norm: Norm) -> None:
        self.norm = norm
        self.sign, self.weight = torch.sign(w), torch.abs(w)
        if norm != "linf":
            self.weight = F.threshold(self.weight, SMALLEST_WEIGHT, 0.0)
        if norm == "l1":
            self.largest, self.place = self.weight.topk(min(_FIRST_LARGEST, w.shape[1]))
        else:
            self.speed = self.weight if norm == "l2" else None
            self.slope = _slope(self.weight, self.speed)

    def step(self, t: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest step from points in the box to the hyperplane, inside the box.

        Args:
            t: points, `(N, D)` in [0, 1].
            gap: <w, t> - b, `(N,)`.

        Returns:
            The step `(N, D)` and its norm `(N,)`.
        """
        turn, gap = torch.where(gap < 0, 1.0, -1.0)[:, None], gap.abs()
        if self.norm == "l1":
            step = self._fill_largest(t, turn, gap)
        else:
            step = torch.mul(self.sign, turn)
            step *= self._climb(_room(step, t), gap)
        return step, length(step, self.norm)

    def _climb(self, room: Tensor, gap: Tensor) -> Tensor:
        """s = min(lambda speed, room) with <weight, s> = gap, `(N, D)`; s = room where no lambda reaches the gap."""
        multiplier = (gap / self.slope.clamp(min=torch.finfo(gap.dtype).tiny)).clamp_(max=_FAR)
        size, free = torch.empty_like(room), torch.empty_like(room)
        climbing = torch.ones_like(gap, dtype=torch.bool)
        for _ in range(_NEWTON_STEPS):
            reach = multiplier[:, None] if self.speed is None else torch.mul(self.speed, multiplier[:, None], out=free)
            torch.minimum(reach, room, out=size)
            missing = gap - torch.linalg.vecdot(self.weight, size)
            climbing &= missing > _ROUNDING * gap
            if not climbing.any():
                break
            torch.lt(reach, room, out=free)
            slope = _slope(self.weight, free if self.speed is None else free.mul_(self.speed))
            further = torch.where(slope > 0, multiplier + missing / slope, _FAR).clamp_(max=_FAR)
            # Rounding can leave a gap that never closes. A row that no longer moves has arrived.
            climbing &= further > multiplier * (1 + _ROUNDING)
            multiplier = torch.where(climbing, further, multiplier)
        return size

    def _fill_largest(self, t: Tensor, turn: Tensor, gap: Tensor) -> Tensor:
        while True:
            direction = self.sign.gather(1, self.place) * turn
            room = _room(direction, t.gather(1, self.place))
            cost = self.largest * room
            paid = cost.cumsum(dim=1)
            count, dimensions = self.place.shape[1], t.shape[1]
            if count == dimensions or bool((paid[:, -1] >= gap).all()):
                break
            self.largest, self.place = self.weight.topk(min(8 * count, dimensions))
        left = (gap[:, None] - (paid - cost)).clamp_(min=0)
        size = torch.minimum(left / self.largest.clamp(min=torch.finfo(t.dtype).tiny), room)
        return torch.zeros_like(t).scatter_(1, self.place, direction * size * (self.largest > 0))


def length(x: Tensor, norm: Norm) -> Tensor:
    """Norm of each row, `(N,)`."""
    if norm == "linf":  # several times as fast as torch's vector_norm of that order
        return torch.maximum(x.amax(dim=1), -x.amin(dim=1))
    found: Tensor = torch.linalg.vector_norm(x, 1 if norm == "l1" else 2, dim=1)
    return found


def _room(direction: Tensor, t: Tensor) -> Tensor:
    """How far each coordinate can go: 1 - t upwards, t downwards."""
    return direction.clamp(min=0).sub_(t).abs_()


def _slope(weight: Tensor, speed: Tensor | None) -> Tensor:
    """How fast <weight, s> grows with lambda if every coordinate moves at its speed; None is a speed of 1."""
    found: Tensor = weight.sum(dim=1) if speed is None else torch.linalg.vecdot(weight, speed)
    return found
