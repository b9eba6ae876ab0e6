"""Indirect gradient distillation, added to another method."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from dgad_tk.ascent.losses import kl
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import Batch, Method, Step, require


@dataclass(frozen=True, kw_only=True)
class Igdm(Method):
    """IGDM, an add-on. Lee, Cho, Kim, ICLR 2025, https://arxiv.org/abs/2312.03286.

    With d = x' - x, the difference of a locally linear network's logits at x + d and x - d is its gradient along d:

        L = L_base + weight (epoch/epochs) KL( softmax(t(x+d) - t(x-d)) ‖ softmax(s(x+d) - s(x-d)) )

    As released, x - d is not cut to [0, 1], and the weight grows with the epoch, counted from 0, so that it is 0 in the
    first epoch. s(x + d) comes from the base's own forward; s(x - d) is one more forward in train mode.

    Attributes:
        base: a method with a teacher that attacks.
        weight: 1 on CIFAR-10, 10 on CIFAR-100 and Tiny ImageNet.
    """

    needs_teacher: ClassVar[bool] = True

    base: Method
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight must not be negative, got {self.weight}")

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        teacher = require(teacher)
        step = self.base.step(student, teacher, batch, threat)
        assert step.x_adv is not None, "`find_method` lets no method through that does not attack"
        mirrored = 2 * batch.x - step.x_adv
        with torch.no_grad():
            slope = teacher(step.x_adv) - teacher(mirrored)
        gap = batch.mean(kl(slope, step.logits - student(mirrored)))
        loss = step.loss + self.weight * batch.epoch / batch.epochs * gap
        return replace(step, loss=loss, terms={**step.terms, "igdm": gap})
