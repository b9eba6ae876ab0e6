"""Self-consistent robust error."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgad_tk.ascent.inner_max import Objective
from dgad_tk.ascent.losses import squared_gap
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import AdversarialMethod, Batch, Step


@dataclass(frozen=True, kw_only=True)
class Score(AdversarialMethod):
    """SCORE, in the form of TRADES. Pang et al., ICML 2022, https://arxiv.org/abs/2202.10103.

    Squared errors of probabilities take the place of cross-entropy and divergence, LSE(P, Q) = sum_c (P_c - Q_c)^2:

        L = mean_i relu( LSE(S(x_i), y~_i) + beta LSE(S(x'_i), S(x_i)) - bound )

    x' maximises LSE(S(x'), S(x)); in the outer loss nothing is detached. Samples within the bound c^2 + c^2/(K - 1)
    have no gradient. Defaults are those of the released script without generated data (PreActResNet-18, 110 epochs, lr
    0.05): beta 6, c 0.3, adversarial forward first. With 1M generated images the authors use beta 3 to 4, no bound, a
    clipped uniform start, and in the attack the statistics of the batch without an update of the running ones
    (`init=uniform clip_start=true bn_in_attack=batch clip=0`). They also run the clean forward first, which is not
    offered.

    Attributes:
        beta: weight of the robust term.
        clip: c of the bound; 0 for no bound.
        label_smoothing: ls of y~ = (1 - K ls/(K - 1)) onehot + ls/(K - 1).
    """

    beta: float = 6.0
    clip: float = 0.3
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.clip < 0:
            raise ValueError(f"clip must not be negative, got {self.clip}")

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        def objective_on(net: nn.Module, rows: slice) -> Objective:
            with torch.no_grad():
                target = net(batch.x[rows])
            return lambda images: squared_gap(net(images), target)

        x_adv = self.attack(student, batch, threat, objective_on)
        logits_adv, logits_clean = student(x_adv), student(batch.x)
        clean = (F.softmax(logits_clean, dim=1) - self._label(logits_clean, batch.y)).square().sum(dim=1)
        robust = squared_gap(logits_adv, logits_clean)
        losses = clean + self.beta * robust
        if self.clip > 0:
            losses = F.relu(losses - self.clip**2 * (1 + 1 / (logits_clean.shape[1] - 1)))
        terms = {"lse_clean": batch.mean(clean), "lse_adv": batch.mean(robust)}
        return Step(batch.mean(losses), terms, x_adv, logits_adv, logits_clean)

    def _label(self, logits: Tensor, y: Tensor) -> Tensor:
        classes = logits.shape[1]
        share = self.label_smoothing / (classes - 1)
        return (1 - classes * share) * F.one_hot(y, classes).to(logits.dtype) + share
