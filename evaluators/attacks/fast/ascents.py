"""Short ascents on the margin, with steps that shrink along a cosine. Each row of a batch is an ascent of its own."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dgad_tk.ascent.balls import BALLS, Ball
from dgad_tk.ascent.directions import finite
from dgad_tk.ascent.losses import margin
from dgad_tk.config.threat import Norm
from evaluators.attacks.native import Victim

LARGEST, SMALLEST = 2.0, 0.02
"""The first and the last step of an ascent, as multiples of eps."""
MOMENTUM = 0.25
"""Share of the last movement in the next one, as in APGD."""
UNTARGETED = -1
"""The target of an ascent towards whichever other class is the likeliest."""
_FEW = 8
"""Rows that have ended are dropped as soon as they are one in so many."""


@dataclass
class Ascents:
    """N ascents, one per row.

    Attributes:
        image: number of the image that each belongs to, int64 `(N,)`.
        x: clean images, float32 `(N, C, H, W)`.
        y: labels, int64 `(N,)`.
        target: classes to move to, or UNTARGETED, int64 `(N,)`.
        start: where each begins, inside the ball and [0, 1], like `x`.
    """

    image: Tensor
    x: Tensor
    y: Tensor
    target: Tensor
    start: Tensor

    def only(self, rows: Tensor) -> "Ascents":
        """The ascents `rows`, int64 or bool."""
        return Ascents(self.image[rows], self.x[rows], self.y[rows], self.target[rows], self.start[rows])


@dataclass
class Ends:
    """What N ascents came to.

    Attributes:
        broken: a point of it breaks the model, bool `(N,)`.
        lead: the lowest lead of the label over all other classes, `(N,)`.
        gap: the lowest lead over the target; over all other classes where there is no target, `(N,)`.
        point: the point of the lowest lead, or the one that breaks the model, `(N, C, H, W)`.
    """

    broken: Tensor
    lead: Tensor
    gap: Tensor
    point: Tensor


def ascend(victim: Victim, ascents: Ascents, *, norm: Norm, eps: float, steps: int) -> Ends:
    """Raise z_t - z_y, the target's logit over the label's, from each start.

        x_{k+1} = Pi(x_k + (1 - m) (Pi(x_k + a_k d_k) - x_k) + m (x_k - x_{k-1}))
        a_k = eps (a_min + (a_max - a_min) (1 + cos(pi k / K)) / 2)

    d_k is the sign of the gradient in Linf, and its unit vector in L2: a loss that is multiplied by a number has the
    same ascent, so that neither large nor small logits hide it. The steps are those of A3 (Liu et al., CVPR 2022,
    https://arxiv.org/abs/2203.05154, section 3.3), the momentum is APGD's. All ascents of an image end as soon as one
    of its points breaks the model. Each step takes one pass forward and backward, and the last point a pass forward.
    """
    ends = Ends(
        broken=torch.zeros_like(ascents.y, dtype=torch.bool),
        lead=torch.full_like(ascents.x[:, 0, 0, 0], math.inf),
        gap=torch.full_like(ascents.x[:, 0, 0, 0], math.inf),
        point=ascents.start.clone(),
    )
    ball, at = BALLS[norm](eps), torch.arange(len(ascents.y), device=ascents.y.device)
    here, before, now = ascents.start, ascents.start, ascents
    for step in range(steps + 1):
        images = here.detach().requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            logits = victim.logits(images)
        answers = logits.detach()
        # The runtime's word at once: where it still gets a point right, the ascent goes on.
        broken = victim.confirmed(victim.suspects(answers, now.y), here, now.y, certain=victim.logits_prove)
        _record(ends, at, here, answers, now, broken)
        if step == steps:
            break
        (gradient,) = torch.autograd.grad(-_gap(logits, now).sum(), images)
        after = _step(ball, here, before, now.x, finite(gradient), eps * size(step, steps), first=step == 0)
        before, here = here, after
        if bool(broken.any()):
            left = ~torch.isin(now.image, now.image[broken])
            if int(left.sum()) <= len(left) - max(1, len(left) // _FEW) or not bool(left.any()):
                at, now, here, before = at[left], now.only(left), here[left], before[left]
        if len(at) == 0:
            break
    return ends


def _record(ends: Ends, at: Tensor, here: Tensor, answers: Tensor, now: Ascents, broken: Tensor) -> None:
    lead = torch.where(broken, -math.inf, margin(answers, now.y))
    better = (lead < ends.lead[at]) & ~ends.broken[at]
    ends.lead[at] = torch.where(better, lead, ends.lead[at])
    ends.gap[at] = torch.minimum(_gap(answers, now), ends.gap[at])
    ends.point[at[better]] = here[better]
    ends.broken[at] |= broken


def _gap(logits: Tensor, now: Ascents) -> Tensor:
    """The label's lead over the target, `(N,)`."""
    own = logits.gather(1, now.y[:, None])[:, 0]
    over = logits.gather(1, now.target.clamp(min=0)[:, None])[:, 0]
    return torch.where(now.target == UNTARGETED, margin(logits, now.y), own - over)


def _step(ball: Ball, here: Tensor, before: Tensor, x: Tensor, gradient: Tensor, size: float, *, first: bool) -> Tensor:
    after = ball.project(ball.step(here, gradient, size), x)
    if first:  # there is no last movement yet
        return after
    moved = here + (1 - MOMENTUM) * (after - here) + MOMENTUM * (here - before)
    return ball.project(moved, x)


def size(step: int, steps: int) -> float:
    """The size of a step, as a multiple of eps."""
    return SMALLEST + (LARGEST - SMALLEST) * (1 + math.cos(math.pi * step / steps)) / 2
