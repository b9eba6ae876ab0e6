"""How far the search is with each image, and when it may stop."""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluators.attacks.fast.ascents import UNTARGETED, Ends

PATIENCE = (30.0, 8.0)
"""A search stops where the lead that is left is more than so many times what the last round of restarts took off it,
or the last two together."""


@dataclass
class Progress:
    """The state of the search of N images. A round changes it; between two rounds it can be stored.

    Attributes:
        point: the point of the lowest lead, or the one that breaks the model, `(N, C, H, W)`.
        broken: the deployed runtime gets `point` wrong, bool `(N,)`.
        settled: the search has stopped without success, bool `(N,)`.
        lead: the lowest lead of the label over all other classes, `(N,)`.
        targets: classes in the order in which they are tried, int64 `(N, T)`.
        gaps: the lowest lead over each of them in ascents towards it, `(N, T)`.
        gains: what the last two rounds of restarts took off the lead, `(N, 2)`, the last one first.
    """

    point: Tensor
    broken: Tensor
    settled: Tensor
    lead: Tensor
    targets: Tensor
    gaps: Tensor
    gains: Tensor

    @classmethod
    def begin(cls, x: Tensor, clean: Tensor, targets: Tensor) -> "Progress":
        """Before the first round.

        Args:
            x: clean images, `(N, C, H, W)`.
            clean: the label's lead there, `(N,)`.
            targets: int64 `(N, T)`.
        """
        no = torch.zeros_like(clean, dtype=torch.bool)
        return cls(
            point=x.clone(),
            broken=no,
            settled=no.clone(),
            lead=clean.clone(),
            targets=targets,
            gaps=torch.full(targets.shape, math.inf, dtype=clean.dtype, device=clean.device),
            gains=torch.full((len(clean), len(PATIENCE)), math.inf, dtype=clean.dtype, device=clean.device),
        )

    @property
    def left(self) -> Tensor:
        """Numbers of the images that are searched on, int64."""
        return (~self.broken & ~self.settled).nonzero()[:, 0]

    def judge(self, image: Tensor, broken: Tensor, lead: Tensor) -> None:
        """Take the deployed runtime's word for the points of the images `image`, int64 `(n,)`.

        Args:
            broken: it gets them wrong, bool `(n,)`.
            lead: the label's lead there by the runtime, `(n,)`.
        """
        self.broken[image] = broken
        # What the search called broken and the runtime does not, as in L2, where the point was brought into the ball.
        refused = ~broken & (self.lead[image] == -math.inf)
        self.lead[image] = torch.where(refused, lead, self.lead[image])

    def nearest(self, image: Tensor, rank: int) -> Tensor:
        """The class that came `rank`-th nearest to the label in the ascents so far, int64 `(n,)`."""
        order = self.gaps[image].argsort(dim=1, stable=True)
        return self.targets[image].gather(1, order[:, rank : rank + 1])[:, 0]

    def record(self, image: Tensor, target: Tensor, ends: Ends) -> None:
        """Record ascents of the images `image`, int64 `(n,)`, which may be named several times."""
        lowest = torch.full_like(self.lead, math.inf).scatter_reduce_(0, image, ends.lead, "amin")
        better = ((ends.lead == lowest[image]) & (ends.lead < self.lead[image]) & ~self.broken[image]).nonzero()[:, 0]
        _, first = np.unique(image[better].cpu().numpy(), return_index=True)  # the first ascent, where several tie
        rows = better[torch.from_numpy(first).to(better.device)]
        self.lead[image[rows]], self.point[image[rows]] = ends.lead[rows], ends.point[rows]
        self.broken[image[ends.broken]] = True
        for place in range(self.targets.shape[1]):
            towards = (self.targets[image, place] == target) & (target != UNTARGETED)
            self.gaps[:, place].scatter_reduce_(0, image[towards], ends.gap[towards], "amin")

    def settle(self, before: Tensor) -> None:
        """After a round of restarts: stop where the lead has stopped moving.

        Args:
            before: the leads before the round, `(N,)`.
        """
        gain = (before - self.lead).clamp(min=0)
        self.gains = torch.cat([gain[:, None], self.gains[:, :-1]], dim=1)
        hopeless = self.lead[:, None] > self.lead.new_tensor(PATIENCE) * self.gains.cumsum(dim=1)
        self.settled |= ~self.broken & hopeless.any(dim=1)

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        return {each.name: getattr(self, each.name).cpu().numpy() for each in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any], device: torch.device) -> "Progress":
        return cls(**{each.name: torch.from_numpy(arrays[each.name]).to(device) for each in fields(cls)})
