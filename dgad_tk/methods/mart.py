"""Misclassification-aware adversarial training."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from dgad_tk.ascent.losses import cross_entropy, runner_up
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import AdversarialMethod, Batch, Step, label_loss


@dataclass(frozen=True, kw_only=True)
class Mart(AdversarialMethod):
    """MART. Wang et al., ICLR 2020, eq. 11, https://openreview.net/forum?id=rklOg6EFwS.

    y2 is the likeliest wrong class on x', and x' maximises CE(s(x'), y):

        BCE = CE(s(x'), y) - log(1.0001 - S_y2(x'))
        L   = BCE + beta mean_i KL(S(x_i)‖S(x'_i)) (1 - S_y(x_i))

    The constants are the released code's (1.0001, 1.0000001 and 1e-12 inside logarithms), and as there nothing is
    detached. Released radius and step are 0.031 and 0.007, the ResNet-18 recipe lr 0.01, weight decay 3.5e-3, 120
    epochs; here they are the dataset's and the run's.

    Attributes:
        beta: weight of the second term; 6 is the loss's default (WideResNet), 5 the ResNet script's.
    """

    beta: float = 6.0

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        x_adv = self.attack(student, batch, threat, label_loss(batch.y))
        logits_clean = student(batch.x)
        log_clean = F.log_softmax(logits_clean, dim=1)
        clean = log_clean.exp()
        logits_adv = student(x_adv)
        adv = F.softmax(logits_adv, dim=1)
        of_rival = adv.gather(1, runner_up(logits_adv.detach(), batch.y)[:, None])[:, 0]
        boosted = cross_entropy(logits_adv, batch.y) - torch.log(1.0001 - of_rival + 1e-12)
        of_label = clean.gather(1, batch.y[:, None])[:, 0]
        divergence = (clean * (log_clean - torch.log(adv + 1e-12))).sum(dim=1)
        bce, robust = batch.mean(boosted), batch.mean(divergence * (1.0000001 - of_label))
        return Step(bce + self.beta * robust, {"bce": bce, "robust": robust}, x_adv, logits_adv, logits_clean)
