"""Adaptive adversarial distillation, and with introspection."""

from dataclasses import dataclass

import torch
from torch import nn

from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.moments import When, epoch_of
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import Batch, Step, require
from dgad_tk.methods.guided import Guided, discrepancy
from dgad_tk.methods.iad import reliability


@dataclass(frozen=True, kw_only=True)
class AdaAd(Guided):
    """AdaAD. Huang et al., CVPR 2023, eq. 8, "Boosting accuracy and robustness of student models via adaptive
    adversarial distillation", https://openaccess.thecvf.com/CVPR2023.

        L = alpha KL(T(x')‖S(x')) + (1 - alpha) KL(T(x)‖S(x))

    x' maximises KL(T(x')‖S(x')), with the gradient through both networks; `teacher_in_attack` has cheaper ways. The
    released code averages the divergence over classes on CIFAR-10 (`kl_reduction="elementmean"`) and not on CIFAR-100.
    As released, the clean forward runs at alpha 1 too, so that the running statistics are of both kinds of images.
    DGAD's Figure 2 sweeps alpha.

    Attributes:
        alpha: weight of the adversarial term.
    """

    alpha: float = 1.0

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        teacher = require(teacher)
        guide = self.guide(teacher, batch)
        x_adv = self.attack(student, batch, threat, discrepancy(guide))
        with torch.set_grad_enabled(self.alpha < 1):
            logits_clean = student(batch.x)
        logits_adv = student(x_adv)
        with torch.no_grad():
            target_adv = teacher(x_adv)
        divergence = self.kl(batch.for_adv(target_adv), logits_adv)
        terms = {"kl_adv": batch.mean(divergence)}
        loss, target_clean = self.alpha * terms["kl_adv"], guide.clean
        if self.alpha < 1:
            target_clean = guide.on_clean()
            terms["kl_clean"] = batch.mean(self.kl(batch.for_clean(target_clean), logits_clean))
            loss = loss + (1 - self.alpha) * terms["kl_clean"]
        distilled = self.alpha * divergence
        return Step(loss, terms, x_adv, logits_adv, logits_clean, distilled, target_adv, target_clean)


@dataclass(frozen=True, kw_only=True)
class AdaIad(Guided):
    """AdaIAD: AdaAD's attack with IAD's introspection. Huang et al., CVPR 2023, section 3.4,
    https://openaccess.thecvf.com/CVPR2023.

        L = alpha tau^2 KL(T_tau(x')‖S_tau(x')) + alpha mean_i (1 - a_i) KL(S(x_i)‖S(x'_i)) + (1 - alpha) CE(s(x), y)

    with a_i = T_{y_i}(x'_i)^beta. The second term begins at `begin`. Forwards as released: clean (unused), adversarial,
    clean for the introspection once it has begun, clean for the cross-entropy.

    Attributes:
        alpha: weight of distillation against the labels.
        temperature: tau of the teacher's term.
        beta: exponent of the teacher's reliability.
        begin: when introspection begins; below 1 a share of the epochs (60 of 200 as released), else an epoch.
    """

    alpha: float = 1.0
    temperature: float = 30.0
    beta: float = 0.1
    begin: When = 0.3

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        teacher = require(teacher)
        guide = self.guide(teacher, batch)
        x_adv = self.attack(student, batch, threat, discrepancy(guide))
        with torch.no_grad():
            student(batch.x)
            target = teacher(x_adv)
            trust = reliability(target, batch.y, self.beta)
        logits_adv = student(x_adv)
        own = torch.zeros_like(trust)
        if batch.epoch >= epoch_of(self.begin, batch.epochs):
            own = (1 - trust) * self.kl(student(batch.x), logits_adv)
        divergence = self.kl(batch.for_adv(target), logits_adv, self.temperature)
        distill, introspection = batch.mean(divergence), batch.mean(own)
        logits_clean = student(batch.x)
        ce_clean = batch.mean(cross_entropy(logits_clean, batch.y))
        loss = self.alpha * (self.temperature**2 * distill + introspection) + (1 - self.alpha) * ce_clean
        terms = {"distill": distill, "introspection": introspection, "ce_clean": ce_clean}
        distilled = self.alpha * self.temperature**2 * divergence
        return Step(loss, terms, x_adv, logits_adv, logits_clean, distilled, target, guide.clean)
