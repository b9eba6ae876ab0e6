"""Which classes a targeted attack should try first: those that a linear model of the network reaches soonest."""

import math

import torch
from torch import Tensor

from dgad_tk.ascent.directions import finite
from dgad_tk.config.threat import Norm
from evaluators.attacks.native import Victim

CANDIDATES = 30
"""Classes of largest logit whose gradients are taken. Each costs a backward pass."""
_DUAL: dict[Norm, float] = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
"""The order of the norm that bounds how fast a linear function changes inside a ball of the key's norm."""


def target_order(
    victim: Victim, x: Tensor, y: Tensor, norm: Norm, count: int, *, candidates: int = CANDIDATES, batch_size: int = 250
) -> Tensor:
    """Classes in the order in which a targeted attack should try them, the most promising one first.

    Melamed, Yehudai & Shamir, NeurIPS 2024, https://arxiv.org/abs/2407.02240, section 3: a linear model of the network
    at the clean image reaches class j after a change of length

        (z_y - z_j) / ||gradient of (z_j - z_y)||_q,  1 / p + 1 / q = 1

    in the norm p of the ball. The paper takes the 100 classes of largest logit; with as many candidates as there are
    other classes nothing is left out. A class whose gradient is 0 comes last; equal ones stay in the order of logits.

    An image takes one forward pass, and one backward pass for each candidate.

    Args:
        x: clean images, float32 `(N, C, H, W)`.
        y: labels, int64 `(N,)`.
        count: classes that are wanted.
        candidates: classes of largest logit, besides the label, whose gradients are taken.
        batch_size: images at a time.

    Returns:
        Classes int64 `(N, min(count, candidates, K - 1))`; never the label.
    """
    parts = zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
    return torch.cat([_ordered(victim, *part, norm, candidates)[:, :count] for part in parts])


@torch.enable_grad()
def _ordered(victim: Victim, x: Tensor, y: Tensor, norm: Norm, candidates: int) -> Tensor:
    images = x.detach().requires_grad_()
    logits = victim.logits(images)
    others = logits.detach().scatter(1, y[:, None], -torch.inf)
    classes = others.topk(min(candidates, logits.shape[1] - 1), dim=1).indices
    gaps = logits.gather(1, y[:, None]) - logits.gather(1, classes)
    slopes = torch.zeros_like(gaps, requires_grad=False)
    for place in range(classes.shape[1]):
        (gradient,) = torch.autograd.grad(gaps[:, place].sum(), images, retain_graph=place + 1 < classes.shape[1])
        slopes[:, place] = torch.linalg.vector_norm(finite(gradient).flatten(1), ord=_DUAL[norm], dim=1)
    far = torch.where(slopes > 0, gaps.detach() / slopes, torch.inf).nan_to_num(nan=torch.inf)
    return classes.gather(1, far.argsort(dim=1, stable=True))
