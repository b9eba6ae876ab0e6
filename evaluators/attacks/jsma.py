"""The Jacobian-based saliency map attack: one backward pass per iteration, in batches that stay full."""

import torch
from art.estimators.classification.classifier import ClassifierMixin
from torch import Tensor

from dgad_tk.ascent.directions import finite
from dgad_tk.ascent.losses import runner_up
from evaluators.attacks.native import NativeAttack


class SaliencyMap(NativeAttack):
    """JSMA (Papernot et al., EuroS&P 2016, https://arxiv.org/abs/1511.07528, algorithm 3): few pixels, changed a lot.

    A feature is a channel of a pixel. Each iteration moves two features by `theta`: those along which the target's
    logit rises fastest. It ends when the image is classified as the target, when `gamma` is spent, or when no feature
    has room left. An image whose search fails comes back changed.

    Iterates are those of ART's `SaliencyMapMethod` for the same targets. Both depart from the paper: the pair is chosen
    by the target's gradient alone. That is the paper's saliency of a softmax output, where the other classes' gradients
    sum to the negative of the target's. It needs one backward pass and no search over D² pairs. The pair that reaches
    `gamma` is still moved, so that up to two features more than that share may change.

    The DGAD paper (Table 7) gives no theta, gamma or targets: theta 1, gamma 0.1 and the runner-up class of the clean
    image are ours.

    Args:
        theta: change of a feature in an iteration, a signed fraction of 1.
        gamma: share of features that may change.
        targeted: `y` holds the classes to reach. Otherwise the target is the class with the largest other logit.
        batch_size: images at a time.
    """

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        theta: float = 1.0,
        gamma: float = 0.1,
        targeted: bool = False,
        batch_size: int = 128,
    ) -> None:
        super().__init__(estimator, eps=0.0, batch_size=batch_size)
        self.theta, self.gamma, self._targeted = theta, gamma, targeted
        if not 0 < abs(theta) <= 1:
            raise ValueError(f"expected theta in [-1, 1] and not 0, got {theta}")
        if not 0 < gamma <= 1:
            raise ValueError(f"expected gamma in (0, 1], got {gamma}")

    @torch.no_grad()
    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        shape = x.shape
        x_adv = x.flatten(1).clone()
        target = y
        if not self.targeted:
            batches = zip(torch.split(x, self.batch_size), torch.split(y, self.batch_size), strict=True)
            target = torch.cat([runner_up(self.victim.logits(images), labels) for images, labels in batches])
        spent = torch.zeros_like(y)
        # The batch is the first rows of `left`; when images leave, the next ones move up.
        left = torch.arange(len(x), device=x.device)
        budget = self.gamma * x_adv.shape[1]
        while len(left):
            rows = left[: self.batch_size]
            images = x_adv[rows]
            with torch.enable_grad():
                logits = self.victim.logits(images.requires_grad_().view(-1, *shape[1:]))
                of_target = logits.gather(1, target[rows, None]).sum()
            (gradient,) = torch.autograd.grad(of_target, images)
            images, gradient = images.detach(), finite(gradient)
            reached = logits.detach().argmax(dim=1) == target[rows]
            room = images < 1 if self.theta > 0 else images > 0
            stuck = ~room.any(dim=1)

            saliency = (gradient if self.theta > 0 else -gradient).masked_fill_(~room, -torch.inf)
            pair = saliency.topk(min(2, saliency.shape[1]), dim=1).indices
            before = images.gather(1, pair)
            after = (before + self.theta).clamp_(0, 1)
            goes_on = ~(reached | stuck)
            x_adv[rows[:, None], pair] = torch.where(goes_on[:, None], after, before)
            # A feature counts when it leaves its clean value, once.
            fresh = (before == x.flatten(1)[rows].gather(1, pair)) & (after != before)
            spent[rows] += fresh.sum(dim=1) * goes_on
            goes_on &= spent[rows] <= budget
            left = torch.cat([rows[goes_on], left[self.batch_size :]])
        return x_adv.view(shape)
