"""Projected gradient descent on one of four losses. FGSM is one step of it, and MIM adds momentum."""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from dgad_tk.ascent.inner_max import Init, Objective, draw_noise, inner_max, start_point
from dgad_tk.ascent.losses import cross_entropy, kl, margin
from dgad_tk.common import UserError
from dgad_tk.config.threat import Norm, ThreatModel
from evaluators.attacks.arguments import at_least
from evaluators.attacks.autoattack.dlr import DLR_CLASSES, dlr
from evaluators.attacks.native import NativeAttack, wrong

Loss = Literal["ce", "dlr", "cw", "kl"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


class ProjectedGradient(NativeAttack):
    """PGD (Madry et al., ICLR 2018, https://arxiv.org/abs/1706.06083), on any ART estimator with a torch module.

    The last iterate counts, as in the evaluations of the DGAD paper. The random start of an image depends only on the
    seed and the image's index, unlike in ART's own PGD.

    Losses, z the logits of x', y the label:

        ce    -log softmax(z)_y
        cw    max_{i != y} z_i - z_y                      Carlini & Wagner (2017), section V-A, f_6 without its floor
        dlr   (max_{i != y} z_i - z_y) / (z_(1) - z_(3))  Croce & Hein (2020), eq. 6; z_(1) the largest logit
        kl    KL(softmax(z_clean) || softmax(z))          the inner attack of TRADES (Zhang et al., 2019); no label

    With momentum m it is MIM (Dong et al., CVPR 2018, https://arxiv.org/abs/1710.06081, algorithm 1 and section 3.3):
    steps follow g_k = m g_{k-1} + gradient / |gradient|_1, where the paper takes m = 1.

    Args:
        norm: in "l1" its steps are sparse (`dgad_tk.ascent.balls.L1Ball`).
        step_size: of each step, in the norm.
        steps: number of steps.
        init: where it starts: "uniform" in the ball, "gauss" (0.001 N(0, 1)), or "none", the image itself.
        restarts: number of starts. An image that a start has broken is left alone.
        loss: to be made large, or small where `targeted`.
        momentum: share of the gradients so far that a step keeps.
        targeted: `y` holds the classes to reach.

    Other arguments are those of `NativeAttack`.

    Raises:
        ValueError: a setting outside its range, or two that contradict each other.
        UserError: fewer classes than the loss can do with.
    """

    def __init__(
        self,
        estimator: PyTorchClassifier,
        *,
        norm: Norm = "linf",
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
        init: Init = "uniform",
        restarts: int = 1,
        loss: Loss = "ce",
        momentum: float = 0.0,
        targeted: bool = False,
        seed: int = 0,
        batch_size: int = 128,
    ) -> None:
        super().__init__(estimator, norm=norm, eps=eps, seed=seed, batch_size=batch_size)
        self.step_size, self.steps, self.init, self.restarts = step_size, steps, init, restarts
        self.loss, self.momentum, self.targeted = loss, momentum, targeted
        self._threat()
        at_least(1, restarts=restarts)
        at_least(0, momentum=momentum)
        if loss not in LOSSES:
            raise ValueError(f"expected a loss of {', '.join(LOSSES)}, got '{loss}'")
        if loss == "kl" and (targeted or init == "none"):
            raise ValueError("the loss 'kl' knows no target, and at the clean image its gradient is 0")
        if loss == "dlr" and estimator.nb_classes < DLR_CLASSES:
            raise UserError(
                f"the loss 'dlr' needs at least {DLR_CLASSES} classes, the model has {estimator.nb_classes}",
                hint="the loss 'cw' works with two",
            )

    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        batches = zip(*(torch.split(each, self.batch_size) for each in (x, y, index)), strict=True)
        return torch.cat([self._restarted(*batch) for batch in batches])

    def _restarted(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        best, left = x, torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            x_adv = self._ascend(x[left], y[left], index[left], restart)
            best = best.index_copy(0, left, x_adv)
            if restart + 1 < self.restarts:
                left = left[~self._reached(x_adv, y[left])]
            if len(left) == 0:
                break
        return best

    def _ascend(self, x: Tensor, y: Tensor, index: Tensor, restart: int) -> Tensor:
        threat = self._threat()
        noise = partial(draw_noise, self.draws, "pgd", tuple(x.shape[1:]), index, step=restart)
        start = start_point(x, threat, self.init, noise, clip=True)
        return inner_max(self._objective(x, y), x, start, threat, momentum=self.momentum)

    def _objective(self, x: Tensor, y: Tensor) -> Objective:
        if self.loss == "kl":
            clean = self.victim.logits(x).detach()
            return lambda z: kl(clean, self.victim.logits(z))
        loss: Callable[[Tensor, Tensor], Tensor] = {
            "ce": cross_entropy,
            "cw": lambda logits, labels: -margin(logits, labels),
            "dlr": dlr,
        }[self.loss]
        sign = -1 if self.targeted else 1
        return lambda z: sign * loss(self.victim.logits(z), y)

    def _reached(self, x_adv: Tensor, y: Tensor) -> Tensor:
        """Where the deployed runtime's answer is what the attack wants, bool `(N,)`; a non-finite one always is."""
        logits = self.victim.verdicts(x_adv)
        other = wrong(logits, y)
        return ~other | ~logits.isfinite().all(dim=1) if self.targeted else other

    def _threat(self) -> ThreatModel:
        return ThreatModel(norm=self.norm, eps=self.eps, step_size=self.step_size, steps=self.steps)
