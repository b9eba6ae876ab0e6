"""sigma-zero: few values changed, by gradients of a smooth count."""

import torch
from art.estimators.classification.classifier import ClassifierMixin
from torch import Tensor

from dgad_tk.ascent.losses import margin
from evaluators.attacks.nearest.base import NearestAttack, Search, annealed, gradient_of
from evaluators.attacks.nearest.lengths import length

BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
LAST_STEP = 0.1
"""The last step size, as a share of the first."""


class SigmaZero(NearestAttack):
    """sigma-zero (Cinà et al., ICLR 2025, https://arxiv.org/abs/2402.01879, algorithm 1), L0.

    Adam minimises, over the perturbation d of D values,

        max(Z_y - max_{i≠y} Z_i, 0) + (1/D) sum_i d_i² / (d_i² + sigma)

    with each image's gradient divided by its largest entry. After a step the image is clipped to [0, 1], and values of
    d below the threshold tau become 0. Tau rises by `threshold_step` times the step size where d was adversarial, and
    falls by as much where it was not. The step size falls to a tenth along half a cosine. The result is the image with
    the fewest changed values that the network gets wrong, just as it saw it.

    At the end, changed values that are not needed are taken back (`NearestAttack`), which the authors do not do. A
    value is one channel of a pixel. As in the authors' code and in adversarial-library, the step size used in a step is
    that of the step before. An image with logits that are not finite is adversarial.

    Args:
        steps: of each image.
        step_size: Adam's first.
        sigma: how sharp the smooth count is; a change far above its root counts as one.
        threshold: first tau.
        threshold_step: change of tau in a step, as a share of the step size.

    Other arguments are those of `NearestAttack`.
    """

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        steps: int = 1000,
        step_size: float = 1.0,
        sigma: float = 0.001,
        threshold: float = 0.3,
        threshold_step: float = 0.01,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator, norm="l0", steps=steps, seed=seed, batch_size=batch_size)
        self.step_size, self.sigma = step_size, sigma
        self.threshold, self.threshold_step = threshold, threshold_step
        for name in ("step_size", "sigma"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"expected {name} > 0, got {getattr(self, name)}")
        for name in ("threshold", "threshold_step"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} in [0, 1], got {getattr(self, name)}")

    def descend(self, run: Search) -> None:
        mean, square = torch.zeros_like(run.x), torch.zeros_like(run.x)
        tau = run.x.new_full((len(run.x), 1), self.threshold)
        size = self.step_size
        for step in range(self.steps):
            logits, leaf = self.looked(run)
            with torch.enable_grad():
                ahead = margin(logits, run.y)
            gradient, missed = gradient_of(ahead, leaf), self.missed(logits, run)
            delta = run.point - run.x
            run.offer(length(delta, "l0"), missed)
            gradient *= (ahead.detach() > 0)[:, None]
            gradient += self._of_count(delta)
            gradient /= gradient.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
            delta -= _adam(mean, square, gradient, step + 1).mul_(size)
            delta = torch.add(run.x, delta, out=run.point).clamp_(0, 1) - run.x
            size = annealed(self.step_size, LAST_STEP * self.step_size, step / self.steps)
            tau = (tau + self.threshold_step * size * torch.where(missed, 1.0, -1.0)[:, None]).clamp_(0, 1)
            torch.where(delta.abs() < tau, run.x, run.point, out=run.point)

    def _of_count(self, delta: Tensor) -> Tensor:
        """The gradient of (1/D) sum_i d_i² / (d_i² + sigma), `(B, D)`."""
        return delta * (2 * self.sigma / delta.shape[1]) / (delta.square() + self.sigma).square()


def _adam(mean: Tensor, square: Tensor, gradient: Tensor, age: int) -> Tensor:
    """The step of Adam (Kingma & Ba, 2015, algorithm 1) of size 1, `(B, D)`; its moments change in place."""
    first, second = BETAS
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    root = (square / (1 - second**age)).sqrt_().add_(ADAM_EPS)
    return (mean / (1 - first**age)).div_(root)
