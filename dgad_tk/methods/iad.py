"""Introspective adversarial distillation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgad_tk.ascent.inner_max import Init
from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.moments import When, epoch_of
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import Batch, BatchNormMode, Distillation, Step, label_loss, require


@dataclass(frozen=True, kw_only=True)
class Iad(Distillation):
    """IAD-I. Zhu et al., ICLR 2022, eq. 6, https://arxiv.org/abs/2106.04928.

    The student trusts its teacher as far as it is right on x', a_i = T_{y_i}(x'_i)^beta, and itself for the rest:

        L = alpha tau^2 KL(T_tau(x)‖S_tau(x')) + alpha mean_i (1 - a_i) KL(S(x_i)‖S(x'_i)) + (1 - alpha) CE(s(x), y)

    The second term begins at `begin`. x' maximises CE(s(x'), y) from a uniform start, with the student in train mode.

    The paper multiplies the teacher's term by a_i; the released code does not (`teacher_weighted`). As released, the
    target S(x) is not detached and an unused second adversarial forward moves the running statistics. The released
    learning rate falls only once (at 100 of 200 epochs).

    Attributes:
        alpha: weight of distillation against the labels.
        temperature: tau of the teacher's term.
        beta: exponent of the teacher's reliability.
        begin: when introspection begins; below 1 a share of the epochs (60 of 200 as released), else an epoch.
        teacher_weighted: multiply the teacher's term by a_i too, as the paper does.
        introspection_detach: no gradient through S(x).
    """

    init: Init = "uniform"
    bn_in_attack: BatchNormMode = "train"
    alpha: float = 1.0
    temperature: float = 1.0
    beta: float = 0.1
    begin: When = 0.3
    teacher_weighted: bool = False
    introspection_detach: bool = False

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        teacher = require(teacher)
        x_adv = self.attack(student, batch, threat, label_loss(batch.y))
        with torch.no_grad():
            target = teacher(batch.x)
            target_adv = teacher(x_adv)
            trust = reliability(target_adv, batch.y, self.beta)
        logits_adv = student(x_adv)
        with torch.no_grad():
            student(x_adv)
        divergence, own = self.kl(batch.for_adv(target), logits_adv, self.temperature), torch.zeros_like(trust)
        if batch.epoch >= epoch_of(self.begin, batch.epochs):
            divergence = divergence * trust if self.teacher_weighted else divergence
            of_self = student(batch.x)
            own = (1 - trust) * self.kl(of_self.detach() if self.introspection_detach else of_self, logits_adv)
        distill, introspection = batch.mean(divergence), batch.mean(own)
        logits_clean = student(batch.x)
        ce_clean = batch.mean(cross_entropy(logits_clean, batch.y))
        loss = self.alpha * (self.temperature**2 * distill + introspection) + (1 - self.alpha) * ce_clean
        terms = {"distill": distill, "introspection": introspection, "ce_clean": ce_clean}
        distilled = self.alpha * self.temperature**2 * divergence
        return Step(loss, terms, x_adv, logits_adv, logits_clean, distilled, target_adv, target)


def reliability(teacher_logits: Tensor, y: Tensor, beta: float) -> Tensor:
    """The teacher's probability of the label to the power of `beta`, `(N,)`."""
    return F.softmax(teacher_logits, dim=1).gather(1, y[:, None])[:, 0] ** beta
