"""Knowledge distillation."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from dgad_tk.ascent.losses import cross_entropy, kl
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import Batch, Method, Step, require


@dataclass(frozen=True, kw_only=True)
class Kd(Method):
    """Knowledge distillation. Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531.

        L = alpha tau^2 KL(T_tau(x)‖S_tau(x)) + (1 - alpha) CE(s(x), y)

    Nothing is attacked, so little robustness passes from the teacher to the student, and the best epoch is chosen by
    its clean accuracy. The paper fixes neither alpha nor tau; the defaults are common values.

    Attributes:
        alpha: weight of the teacher against the labels.
        temperature: tau.
    """

    needs_teacher: ClassVar[bool] = True
    selected_by: ClassVar[Literal["robust", "clean"]] = "clean"

    alpha: float = 0.9
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        with torch.no_grad():
            target = require(teacher)(batch.x)
        logits = student(batch.x)
        divergence = batch.mean(kl(target, logits, self.temperature))
        ce_clean = batch.mean(cross_entropy(logits, batch.y))
        loss = self.alpha * self.temperature**2 * divergence + (1 - self.alpha) * ce_clean
        return Step(loss, {"kl": divergence, "ce_clean": ce_clean}, None, logits)
