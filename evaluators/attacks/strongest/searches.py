"""Searches that climb on one function and end when another one, the target, is broken."""

from collections.abc import Sequence
from typing import Any

import torch
from art.estimators.classification.classifier import ClassifierMixin
from torch import Tensor, nn

from dgad_tk.ascent.losses import cross_entropy, margin
from evaluators.attacks.autoattack.apgd.apgd import APGD
from evaluators.attacks.autoattack.malt import target_order
from evaluators.attacks.autoattack.square.square import Square
from evaluators.attacks.native import Victim, wrong


class MarginAPGD(APGD):
    """APGD on the difference of two logits, against the classes that are nearest to a linear model of the network.

    MultiTargeted (Gowal et al., 2019, https://arxiv.org/abs/1910.09338): maximise z_t - z_y for one class t after
    another. It knows no scale to be divided by, so its gradient is another one than that of targeted DLR, and it works
    with two classes. The classes come in the order of `target_order`.

    Args:
        climbed: what gives logits and gradients; None for the attacked model itself.
        judged: `climbed` is another function than the attacked model. An ascent then goes on until the deployed
            runtime of the model gets a point wrong.
        targets: number of classes; 0 for the untargeted cross-entropy.

    Other arguments are those of `APGD`.
    """

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        climbed: Victim | None = None,
        judged: bool = False,
        targets: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(estimator, **settings)
        self.targets, self.judged = min(targets, estimator.nb_classes - 1), judged
        self.target = self.victim
        self.victim = climbed or self.victim

    def objective(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        if not self.targets:
            return cross_entropy(logits, y)
        pair = logits.gather(1, torch.stack([y, target], dim=1))
        return pair[:, 1] - pair[:, 0]

    def target_classes(self, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        return target_order(self.victim, x, y, self.norm, self.targets, batch_size=self.batch_size)

    def broken(self, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        if not self.judged:
            return self.victim.suspects(logits, y)
        return self.target.confirmed(wrong(self.target.answers(x), y), x, y)


class Together(nn.Module):
    """The sum of several models' logits, each divided by how far its own are apart, so that none outweighs the others.

    Args:
        modules: of the same classes, each to logits `(N, K)`.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(())
        for member in self.members:
            logits: Tensor = member(x)
            total = total.to(logits) + logits / (logits.detach().std(dim=1, keepdim=True) + 1e-12)
        return total


class PlateauSquare(Square):
    """Square on a model whose answers come in steps: what a step hides, another function's answer tells.

    Quantised answers stay as they are under small changes, so that a random search by them alone stands still. Here a
    proposal is taken when the sum of two margins does not rise: that of the runtime, and that of `guide`, which is
    nearly the same function without steps. The runtime alone says whether an image is broken.

    Args:
        guide: gives logits of the function without steps.

    Other arguments are those of `Square`.
    """

    def __init__(self, estimator: ClassifierMixin, *, guide: Victim, **settings: Any) -> None:
        super().__init__(estimator, **settings)
        self.guide = guide

    def _read(self, logits: Tensor, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        margins, held = super()._read(logits, images, y)
        parts = zip(torch.split(images, self.batch_size), torch.split(y, self.batch_size), strict=True)
        return margins + torch.cat([margin(self.guide.logits(part), labels) for part, labels in parts]), held
