"""PGD adversarial training."""

from dataclasses import dataclass

import torch
from torch import nn

from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import AdversarialMethod, Batch, Step, label_loss


@dataclass(frozen=True, kw_only=True)
class PgdAt(AdversarialMethod):
    """PGD-AT. Madry et al., ICLR 2018, eq. 2.1, https://arxiv.org/abs/1706.06083.

        L = CE(s(x'), y)

    x' maximises the same. This is the baseline of the paper's tables (`Plain_Madry` of the AdaAD code). It departs from
    Madry et al. in three things: the start is Gaussian and cut to [0, 1], BatchNorm is in eval mode inside the attack,
    and a clean forward after the adversarial one has no gradient but moves the running statistics.
    """

    clip_start: bool = True

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        x_adv = self.attack(student, batch, threat, label_loss(batch.y))
        logits = student(x_adv)
        loss = batch.mean(cross_entropy(logits, batch.y))
        with torch.no_grad():
            logits_clean = student(batch.x)
            ce_clean = batch.mean(cross_entropy(logits_clean, batch.y))
        return Step(loss, {"ce_adv": loss, "ce_clean": ce_clean}, x_adv, logits, logits_clean)
