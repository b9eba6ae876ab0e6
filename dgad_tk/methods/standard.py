"""Plain training on clean images: the baseline and the source of transfer surrogates."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import Batch, Method, Step


@dataclass(frozen=True, kw_only=True)
class Standard(Method):
    """Plain training: L = CE(s(x), y).

    The best epoch is chosen by clean accuracy, since the accuracy under attack is near zero in every epoch.
    """

    selected_by: ClassVar[Literal["robust", "clean"]] = "clean"

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        logits = student(batch.x)
        loss = batch.mean(cross_entropy(logits, batch.y))
        return Step(loss, {"ce_clean": loss}, None, logits)
