"""Adversarial knowledge distillation with soft labels."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from dgad_tk.ascent.losses import soft_label
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import AdversarialMethod, Batch, Step, label_loss, require


@dataclass(frozen=True, kw_only=True)
class Akd(AdversarialMethod):
    """Adversarial knowledge distillation. Maroto, Ortiz-Jimenez, Frossard 2022, https://arxiv.org/abs/2203.07159.

    Adversarial training on a mixture of the labels and the teacher's answers:

        L = mean_i -sum_c [lam T(x'_i) + (1 - lam) onehot(y_i)]_c log S_c(x'_i)

    x' maximises CE(s(x'), y). The code of the image experiments is not public: lam, the temperature and the teacher's
    input are switches, and the defaults are ours. The AKD of the IAD code is another method (Chen et al. 2021).

    Attributes:
        lam: weight of the teacher in the mixture.
        temperature: of the teacher's answer.
        teacher_input: what the teacher sees.
    """

    needs_teacher: ClassVar[bool] = True

    lam: float = 0.5
    temperature: float = 1.0
    teacher_input: Literal["adv", "clean"] = "adv"

    def __post_init__(self) -> None:
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam must be between 0 and 1, got {self.lam}")

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        x_adv = self.attack(student, batch, threat, label_loss(batch.y))
        with torch.no_grad():
            answer = require(teacher)(x_adv if self.teacher_input == "adv" else batch.x)
            softened = batch.for_adv(answer) / self.temperature
            target = soft_label(softened, batch.y, of_logits=self.lam).exp()
        logits = student(x_adv)
        log_probabilities = F.log_softmax(logits, dim=1)
        loss = batch.mean(-(target * log_probabilities).sum(dim=1))
        distilled = -self.lam * (F.softmax(softened, dim=1) * log_probabilities).sum(dim=1)
        seen = {"teacher_adv" if self.teacher_input == "adv" else "teacher_clean": answer}
        return Step(loss, {"ce_soft": loss}, x_adv, logits, distilled=distilled, **seen)
