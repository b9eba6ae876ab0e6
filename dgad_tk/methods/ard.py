"""Adversarially robust distillation."""

from dataclasses import dataclass

import torch
from torch import nn

from dgad_tk.ascent.inner_max import Init
from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import Batch, BatchNormMode, Distillation, Step, label_loss, require


@dataclass(frozen=True, kw_only=True)
class Ard(Distillation):
    """Adversarially robust distillation. Goldblum et al., AAAI 2020, eq. 3, https://arxiv.org/abs/1905.09747.

        L = alpha tau^2 KL(T_tau(x)‖S_tau(x')) + (1 - alpha) CE(s(x), y)

    x' maximises CE(s(x'), y) from a uniform start. The student is in train mode, so its running statistics also move
    during the attack. The released code averages the divergence over classes too (`kl_reduction="elementmean"`). Its
    learning rate falls only once (at 100 of 200 epochs): the second decay multiplies the initial rate again.

    Attributes:
        alpha: weight of the teacher against the labels.
        temperature: tau, of both networks.
    """

    init: Init = "uniform"
    bn_in_attack: BatchNormMode = "train"
    alpha: float = 1.0
    temperature: float = 30.0

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        x_adv = self.attack(student, batch, threat, label_loss(batch.y))
        with torch.no_grad():
            target = require(teacher)(batch.x)
        logits_adv = student(x_adv)
        per_image = self.kl(batch.for_adv(target), logits_adv, self.temperature)
        divergence = batch.mean(per_image)
        logits_clean = student(batch.x)
        ce_clean = batch.mean(cross_entropy(logits_clean, batch.y))
        loss = self.alpha * self.temperature**2 * divergence + (1 - self.alpha) * ce_clean
        distilled = self.alpha * self.temperature**2 * per_image
        terms = {"kl": divergence, "ce_clean": ce_clean}
        return Step(loss, terms, x_adv, logits_adv, logits_clean, distilled, teacher_clean=target)
