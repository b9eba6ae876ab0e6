"""Adversarial logit pairing."""

from dataclasses import dataclass

from torch import nn

from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import AdversarialMethod, Batch, Step, label_loss


@dataclass(frozen=True, kw_only=True)
class Alp(AdversarialMethod):
    """Adversarial logit pairing. Kannan, Kurakin, Goodfellow 2018, https://arxiv.org/abs/1803.06373.

        L = 1/2 CE(s(x), y) + 1/2 CE(s(x'), y) + weight mean_{i,c} (s_c(x_i) - s_c(x'_i))^2

    x' maximises CE(s(x'), y). This is the CIFAR-10 form of Pang et al. (NeurIPS 2020, "Boosting adversarial training
    with hypersphere embedding"). The authors' own code is for ImageNet only: targeted attack on the least likely class,
    one mixed mini-batch, label smoothing 0.1, weight 0.5. The mean over elements divides the weight by K, compared with
    a squared norm.

    Attributes:
        weight: of the pairing.
        label_smoothing: of both cross-entropies.
    """

    weight: float = 1.0
    label_smoothing: float = 0.0

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        x_adv = self.attack(student, batch, threat, label_loss(batch.y))
        logits_clean = student(batch.x)
        logits_adv = student(x_adv)
        ce_clean = batch.mean(cross_entropy(logits_clean, batch.y, self.label_smoothing))
        ce_adv = batch.mean(cross_entropy(logits_adv, batch.y, self.label_smoothing))
        pairing = batch.mean((logits_clean - logits_adv).square().mean(dim=1))
        loss = 0.5 * ce_clean + 0.5 * ce_adv + self.weight * pairing
        terms = {"ce_clean": ce_clean, "ce_adv": ce_adv, "pairing": pairing}
        return Step(loss, terms, x_adv, logits_adv, logits_clean)
