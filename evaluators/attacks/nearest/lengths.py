"""Lengths of perturbations `(N, D)` in the four norms, and perturbations cut down to a length.

In L0 the values are counted that differ, of all channels: a coloured pixel has three. So do adversarial libraries; some
papers count pixels instead, which gives up to three times smaller numbers.
"""

import torch
from torch import Tensor

from dgad_tk.ascent.l1_projection import l1_correction
from dgad_tk.config.threat import Norm
from evaluators.attacks.autoattack.fab import projections

DUALS: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""A step of length 1 in a norm raises a linear function by at most the gradient's length in its dual. L0 has none."""


def length(delta: Tensor, norm: Norm) -> Tensor:
    """Length of each row, `(N,)`."""
    if norm == "l0":
        return torch.count_nonzero(delta, dim=1).to(delta.dtype)
    return projections.length(delta, norm)


def shortened(delta: Tensor, x: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """The nearest perturbation in L2 that is at most `radius` `(N,)` long in `norm`, `(N, D)`.

    In L1 it is the nearest of those that also leave the images `x` in [0, 1]: clipping afterwards would waste length.
    In L0 the largest values stay; of equal ones at the limit, those that come first.
    """
    limit = radius[:, None]
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -limit), limit)
    if norm == "l2":
        return delta * (limit / length(delta, norm).clamp(min=torch.finfo(delta.dtype).tiny)[:, None]).clamp(max=1)
    if norm == "l1":
        return delta + l1_correction(x, delta, radius)
    most = max(1, int(radius.max()))
    places = delta.abs().topk(min(most, delta.shape[1]), dim=1).indices
    kept = torch.arange(places.shape[1], device=delta.device) < limit
    return torch.zeros_like(delta).scatter_(1, places, delta.gather(1, places) * kept)
