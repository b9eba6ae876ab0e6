"""FMN: the fast minimum-norm attack in Linf, L2, L1 and L0."""

import torch
from art.estimators.classification.classifier import ClassifierMixin
from torch import Tensor

from dgad_tk.ascent.losses import margin
from dgad_tk.config.threat import Norm
from evaluators.attacks.nearest.base import NearestAttack, Search, annealed, gradient_of
from evaluators.attacks.nearest.lengths import DUALS, length, shortened

LAST_STEP, LAST_GAMMA = 0.01, 0.001
"""The last step size, as a share of the first, and the last gamma (section 3.1 of the paper and the authors' code)."""
LATE, HASTE = 0.5, 1.1
"""From this share of the steps on, the radius of an image without any success grows by at least this factor a step."""


class FastMinimumNorm(NearestAttack):
    """FMN (Pintor et al., NeurIPS 2021, https://arxiv.org/abs/2102.12827, algorithm 1).

    With L = Z_y - max_{i≠y} Z_i of the logits Z, each step moves the perturbation d by the step size alpha along the
    unit vector of -grad L, cuts it down to the radius e in the norm, and clips the image to [0, 1]. Before that, the
    radius is set by where the search is:

        no adversarial image yet    e = |d| + |L| / |grad L|_dual     the linearised boundary
        d is adversarial            e = min(e (1 - gamma), |d*|)      d* the shortest so far
        d is no longer              e = e (1 + gamma)

    In L0, e is a whole number and moves by at least 1. Alpha and gamma fall along half a cosine, alpha to a hundredth
    and gamma to 0.001. The result is d*, just as the network saw it.

    Of other libraries, foolbox's L2 attack never cuts (its factor is 1) and its L0 attack keeps one value more than e;
    adversarial-library lengthens an L2 perturbation that is shorter than e. This one departs from the paper where a
    search would fail: the boundary of a bent function can be approached for ever and not crossed, so from half of the
    steps on, the radius of an image without success grows by at least a tenth a step. In L1 the cut regards the edges
    of [0, 1] (`shortened`). Where the gradient is 0, a direction is drawn. An image with logits that are not finite is
    adversarial. No search starts from an adversarial image.

    Args:
        norm: "linf", "l2", "l1" or "l0".
        steps: of each image.
        step_size: alpha of the first step, in L2 whatever the norm.
        gamma: of the first step.

    Other arguments are those of `NearestAttack`.
    """

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        norm: Norm = "l2",
        steps: int = 100,
        step_size: float = 1.0,
        gamma: float = 0.05,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator, norm=norm, steps=steps, seed=seed, batch_size=batch_size)
        self.step_size, self.gamma = step_size, gamma
        if not 0 < step_size < float("inf"):
            raise ValueError(f"expected step_size > 0, got {step_size}")
        if not 0 <= gamma < 1:
            raise ValueError(f"expected gamma in [0, 1), got {gamma}")

    def descend(self, run: Search) -> None:
        widest = run.widest
        radius = torch.full_like(widest, 1.0 if self.norm == "l0" else torch.inf)
        for step in range(self.steps):
            logits, leaf = self.looked(run)
            with torch.enable_grad():
                ahead = margin(logits, run.y)
            gradient, missed = gradient_of(ahead, leaf), self.missed(logits, run)
            delta = run.point - run.x
            distance = length(delta, self.norm)
            run.offer(distance, missed)
            share = step / self.steps
            before, radius = (
                radius,
                self._radius(radius, run, distance, missed, annealed(self.gamma, LAST_GAMMA, share)),
            )
            if self.norm != "l0":
                slope = length(gradient, DUALS[self.norm])
                boundary = distance + ahead.detach().abs() / slope.clamp(min=torch.finfo(slope.dtype).tiny)
                radius = torch.where(run.nearest.isinf(), boundary, radius)
            if share >= LATE:
                radius = torch.where(run.nearest.isinf(), torch.maximum(radius, HASTE * before), radius)
            radius = torch.minimum(radius, widest)
            size = annealed(self.step_size, LAST_STEP * self.step_size, share)
            delta.sub_(self.direction(gradient, run, step), alpha=size)
            torch.add(run.x, shortened(delta, run.x, radius, self.norm), out=run.point).clamp_(0, 1)

    def _radius(self, radius: Tensor, run: Search, distance: Tensor, missed: Tensor, gamma: float) -> Tensor:
        """The next radius of images that have been adversarial, or in L0 of all, `(B,)`."""
        shorter, longer = radius * (1 - gamma), radius * (1 + gamma)
        if self.norm == "l0":
            shorter = torch.minimum(radius - 1, shorter.floor()).clamp(min=1)
            longer = torch.maximum(radius + 1, longer.floor())
        return torch.where(missed, torch.minimum(shorter, run.nearest), longer)
