"""Robust soft label adversarial distillation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgad_tk.ascent.inner_max import Objective
from dgad_tk.ascent.losses import kl
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import Batch, Distillation, Step, require

ADV_WEIGHT = 5 / 6


@dataclass(frozen=True, kw_only=True)
class Rslad(Distillation):
    """RSLAD. Zi et al., ICCV 2021, eq. 5, https://arxiv.org/abs/2108.07969.

        L = scale [ 5/6 KL(T(x)‖S(x')) + 1/6 KL(T(x)‖S(x)) ]

    x' maximises KL(T(x)‖S(x')), the teacher's answer on the clean image being fixed. The released code averages the
    divergence over classes (`kl_reduction="elementmean"`), multiplies it by 10 on CIFAR-100 (`scale=10`) and takes
    log(T + 1e-5) (`log_offset=1e-5`); its forwards are adversarial, then clean.

    Attributes:
        scale: of the whole loss.
        log_offset: added to the teacher's probabilities inside the logarithm.
    """

    scale: float = 1.0
    log_offset: float = 0.0

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        with torch.no_grad():
            target = require(teacher)(batch.x)
        softened = batch.for_adv(target)

        def objective_on(net: nn.Module, rows: slice) -> Objective:
            return lambda images: kl(softened[rows], net(images))

        x_adv = self.attack(student, batch, threat, objective_on)
        logits_adv = student(x_adv)
        logits_clean = student(batch.x)
        divergence = self._divergence(softened, logits_adv)
        kl_adv = batch.mean(divergence)
        kl_clean = batch.mean(self._divergence(batch.for_clean(target), logits_clean))
        loss = self.scale * (ADV_WEIGHT * kl_adv + (1 - ADV_WEIGHT) * kl_clean)
        distilled = self.scale * ADV_WEIGHT * divergence
        terms = {"kl_adv": kl_adv, "kl_clean": kl_clean}
        return Step(loss, terms, x_adv, logits_adv, logits_clean, distilled, teacher_clean=target)

    def _divergence(self, target: Tensor, logits: Tensor) -> Tensor:
        if self.log_offset == 0:
            return self.kl(target, logits)
        p = F.softmax(target, dim=1)
        divergence = (p * ((p + self.log_offset).log() - F.log_softmax(logits, dim=1))).sum(dim=1)
        return self.reduced(divergence, logits.shape[1])
