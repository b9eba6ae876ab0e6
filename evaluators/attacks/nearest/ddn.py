"""DDN: the decoupled direction and norm attack in L2."""

import torch
from art.estimators.classification.classifier import ClassifierMixin

from dgad_tk.ascent.losses import cross_entropy
from evaluators.attacks.nearest.base import NearestAttack, Search, annealed, gradient_of
from evaluators.attacks.nearest.lengths import length

LAST_STEP = 0.01


class DecoupledDirectionNorm(NearestAttack):
    """DDN (Rony et al., CVPR 2019, https://arxiv.org/abs/1811.09600, algorithm 1), L2.

    Each step moves the perturbation d along the unit gradient of the cross-entropy by a step size that falls from 1 to
    0.01 along half a cosine, and gives d the length e: `gamma` shorter than the last e where d was adversarial, longer
    where it was not. The image is then clipped to [0, 1]. The result is the nearest adversarial image of all steps,
    just as the network saw it.

    The paper rounds each image to 256 grey levels; this does not, nor does foolbox. Where the gradient is 0, as that of
    a model that is very sure can be in float32, a direction is drawn for the image. An image with logits that are not
    finite is adversarial.

    Args:
        steps: of each image.
        gamma: by which share the length changes in each step.
        first: the first length.

    Other arguments are those of `NearestAttack`.
    """

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        steps: int = 100,
        gamma: float = 0.05,
        first: float = 1.0,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator, norm="l2", steps=steps, seed=seed, batch_size=batch_size)
        self.gamma, self.first = gamma, first
        if not 0 <= gamma < 1:
            raise ValueError(f"expected gamma in [0, 1), got {gamma}")
        if not 0 < first < float("inf"):
            raise ValueError(f"expected first > 0, got {first}")

    def descend(self, run: Search) -> None:
        widest = run.widest
        radius = torch.full_like(widest, self.first)
        for step in range(self.steps):
            logits, leaf = self.looked(run)
            with torch.enable_grad():
                loss = cross_entropy(logits, run.y)
            gradient, missed = gradient_of(loss, leaf), self.missed(logits, run)
            delta = run.point - run.x
            run.offer(length(delta, "l2"), missed)
            delta.add_(self.direction(gradient, run, step), alpha=annealed(1.0, LAST_STEP, step / self.steps))
            radius = torch.minimum(radius * torch.where(missed, 1 - self.gamma, 1 + self.gamma), widest)
            delta *= (radius / length(delta, "l2").clamp(min=torch.finfo(delta.dtype).tiny))[:, None]
            torch.add(run.x, delta, out=run.point).clamp_(0, 1)
