"""Accuracy traded for robustness by a divergence."""

from dataclasses import dataclass

import torch
from torch import nn

from dgad_tk.ascent.inner_max import Objective
from dgad_tk.ascent.losses import cross_entropy, kl
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import AdversarialMethod, Batch, Step


@dataclass(frozen=True, kw_only=True)
class Trades(AdversarialMethod):
    """TRADES. Zhang et al., ICML 2019, eq. 5, https://arxiv.org/abs/1901.08573.

        L = CE(s(x), y) + beta KL(S(x)‖S(x'))

    x' maximises the same divergence. The gradient flows through both of its arguments. As released, the clean target
    comes from a second clean forward: the value is the same, but the running statistics see the clean batch twice.
    The released radius and step are 0.031 and 0.007; here they are the dataset's, as for every method.

    Attributes:
        beta: weight of the divergence.
    """

    beta: float = 6.0

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        def objective_on(net: nn.Module, rows: slice) -> Objective:
            with torch.no_grad():  # the released attack computes it in every step, to the same value
                target = net(batch.x[rows])
            return lambda images: kl(target, net(images))

        x_adv = self.attack(student, batch, threat, objective_on)
        ce_clean = batch.mean(cross_entropy(student(batch.x), batch.y))
        logits_adv = student(x_adv)
        logits_clean = student(batch.x)
        divergence = batch.mean(kl(logits_clean, logits_adv))
        loss = ce_clean + self.beta * divergence
        return Step(loss, {"ce_clean": ce_clean, "kl": divergence}, x_adv, logits_adv, logits_clean)
