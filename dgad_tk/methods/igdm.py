"""Indirect gradient distillation, added to another method."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from dgad_tk.ascent.losses import kl
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import AddOn, Batch, Step, answer_on_adv, require


@dataclass(frozen=True, kw_only=True)
class Igdm(AddOn):
    """IGDM, an add-on. Lee, Cho, Kim, ICLR 2025, https://arxiv.org/abs/2312.03286.

    With d = x' - x, the difference of a locally linear network's logits at x + d and x - d is its gradient along d:

        L = L_base + weight (epoch/epochs) KL( softmax(t(x+d) - t(x-d)) ‖ softmax(s(x+d) - s(x-d)) )

    As released, x - d is not cut to [0, 1], and the weight grows with the epoch, counted from 0, so that it is 0 in the
    first epoch. s(x + d) comes from the base's own forward; s(x - d) is one more forward in train mode.

    Attributes:
        weight: 1 on CIFAR-10, 10 on CIFAR-100 and Tiny ImageNet.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight must not be negative, got {self.weight}")

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        teacher = require(teacher)
        step = self.base.step(student, teacher, batch, threat)
        answer = answer_on_adv(step, teacher)
        assert step.x_adv is not None
        mirrored = 2 * batch.x - step.x_adv
        with torch.no_grad():
            slope = answer - teacher(mirrored)
        gaps = kl(slope, step.logits - student(mirrored))
        factor, gap = self.weight * batch.epoch / batch.epochs, batch.mean(gaps)
        distilled = None if step.distilled is None else step.distilled + factor * gaps
        return replace(step, loss=step.loss + factor * gap, terms={**step.terms, "igdm": gap}, distilled=distilled)
