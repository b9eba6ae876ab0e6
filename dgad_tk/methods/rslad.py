"""Robust soft label adversarial distillation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgad_tk.config import ThreatModel
from dgad_tk.inner_max import Objective
from dgad_tk.losses import kl
from dgad_tk.methods.base import Batch, Distillation, Step, require


@dataclass(frozen=True, kw_only=True)
class Rslad(Distillation):
    """RSLAD. Zi et al., ICCV 2021, eq. 5, https://arxiv.org/abs/2108.07969.

        L = scale [ w KL(T(x)‖S(x')) + (1 - w) KL(T(x)‖S(x)) ]

    x' maximises KL(T(x)‖S(x')), the teacher's answer on the clean image being fixed. The released code averages the
    divergence over classes (`kl_reduction="elementmean"`), multiplies it by 10 on CIFAR-100 (`scale=10`) and takes
    log(T + 1e-5) (`log_offset=1e-5`); its forwards are adversarial, then clean.

    Attributes:
        adv_weight: w.
        scale: of the whole loss.
        log_offset: added to the teacher's probabilities inside the logarithm.
    """

    adv_weight: float = 5 / 6
    scale: float = 1.0
    log_offset: float = 0.0

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        with torch.no_grad():
            target = require(teacher)(batch.x)

        def objective_on(net: nn.Module) -> Objective:
            return lambda images: kl(target, net(images))

        x_adv = self.attack(student, batch, threat, objective_on)
        logits_adv = student(x_adv)
        logits_clean = student(batch.x)
        classes = logits_adv.shape[1]
        kl_adv = batch.mean(self.reduced(self._divergence(target, logits_adv), classes))
        kl_clean = batch.mean(self.reduced(self._divergence(target, logits_clean), classes))
        loss = self.scale * (self.adv_weight * kl_adv + (1 - self.adv_weight) * kl_clean)
        return Step(loss, {"kl_adv": kl_adv.detach(), "kl_clean": kl_clean.detach()}, x_adv, logits_adv)

    def _divergence(self, target: Tensor, logits: Tensor) -> Tensor:
        if self.log_offset == 0:
            return kl(target, logits)
        p = F.softmax(target, dim=1)
        return (p * ((p + self.log_offset).log() - F.log_softmax(logits, dim=1))).sum(dim=1)
