"""A temperature of the teacher per class, added to another method."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.moments import When, epoch_of
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import AddOn, Batch, Step


@dataclass(frozen=True, kw_only=True)
class Classwise(AddOn):
    """ABSLD's temperatures, an add-on. Zhao et al., NeurIPS 2024, "Improving adversarial robust fairness via anti-bias
    soft label distillation", https://arxiv.org/abs/2312.05508.

    The teacher's logits for an image of class k are divided by tau_k: sharper labels for classes that the student finds
    hard, smoother ones for the others. With R_k the mean of CE(s(x'_i), y_i) over the images of class k in the last
    epoch, G_k = R_k - mean_k R_k, and tau_k = 1 in the first epoch, before each later epoch:

        tau_k <- clip( tau_k - rate G_k / max |G|, least, most )

    Targets of S(x) have a second set of temperatures, by CE(s(x), y). `rslad+classwise` with
    `kl_reduction=elementmean` is ABSLD; there and in `dgad`, `adaad` and `adaiad` the attack sees the softened teacher
    too. All answers of the teacher that the student shall give are softened, in addition to temperatures of the base
    (`ard`, `iad`, `adaiad`, `akd`). Its reliability (`iad`, `adaiad`), its partition (`dgad`) and `igdm` see it as it
    is.

    Departures: R_k is a mean, and a sum in the released code, which is the same where classes have equally many images;
    a class without images keeps its temperature. The released rate falls to a tenth whenever the learning rate does,
    at 215, 260 and 285 of 300 epochs; here at these shares of the run. The best epoch is chosen as in every run, and
    there by robust accuracy plus that of the worst class.

    Attributes:
        rate: largest change of a temperature between two epochs.
        least: smallest temperature.
        most: largest temperature.
        milestones: when the rate falls to a tenth, as shares of the run or as epochs.
    """

    rate: float = 0.1
    least: float = 0.5
    most: float = 5.0
    milestones: tuple[When, ...] = (0.717, 0.867, 0.95)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate must not be negative, got {self.rate}")
        if not 0 < self.least <= 1 <= self.most:
            raise ValueError(f"least and most must be above 0 and enclose 1, got {self.least} and {self.most}")

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        memory = self._turned(batch.memory, batch)
        softened = batch
        if memory:
            on_adv, on_clean = memory["temperatures"][:, batch.y]
            softened = replace(batch, temperatures=(on_adv, on_clean))
        step = self.base.step(student, teacher, softened, threat)
        memory = self._noted(memory, step, batch)
        of_adv = memory["temperatures"][0]
        terms = {**step.terms, "tau_least": of_adv.min(), "tau_most": of_adv.max()}
        return replace(step, terms=terms, memory={**step.memory, **memory})

    def _turned(self, memory: Mapping[str, Tensor], batch: Batch) -> Mapping[str, Tensor]:
        """The memory at the beginning of an epoch: new temperatures, and nothing summed up; else as it is."""
        if not memory or int(memory["epoch"]) == batch.epoch:
            return memory
        passed = sum(batch.epoch >= epoch_of(milestone, batch.epochs) for milestone in self.milestones)
        moved = [
            adjusted(each, sums, memory["images"], self.rate * 0.1**passed)
            for each, sums in zip(memory["temperatures"], memory["losses"], strict=True)
        ]
        return {
            "temperatures": torch.stack(moved).clamp(self.least, self.most),
            "losses": torch.zeros_like(memory["losses"]),
            "images": torch.zeros_like(memory["images"]),
            "epoch": torch.full_like(memory["epoch"], batch.epoch),
        }

    @torch.no_grad()
    def _noted(self, memory: Mapping[str, Tensor], step: Step, batch: Batch) -> Mapping[str, Tensor]:
        """The memory with this batch's losses, of all processes."""
        classes, dtype = step.logits.shape[1], torch.promote_types(step.logits.dtype, torch.float32)
        logits = step.logits.detach().to(dtype)
        if not memory:
            memory = {
                "temperatures": logits.new_ones(2, classes),
                "losses": logits.new_zeros(2, classes),
                "images": logits.new_zeros(classes),
                "epoch": torch.tensor(batch.epoch),
            }
        labels = F.one_hot(batch.y, classes).to(dtype)
        answers = [logits] if step.logits_clean is None else [logits, step.logits_clean.to(dtype)]
        # No product of matrices, which autocast would round to bfloat16.
        found = torch.stack([(cross_entropy(each, batch.y)[:, None] * labels).sum(dim=0) for each in answers])
        losses = memory["losses"].clone()
        losses[: len(answers)] += batch.across(found)
        return {**memory, "losses": losses, "images": memory["images"] + batch.across(labels.sum(dim=0))}


def adjusted(temperatures: Tensor, sums: Tensor, images: Tensor, rate: float) -> Tensor:
    """Temperatures `(K,)` moved by the gap of each class's mean loss from that of all classes that had images."""
    seen = images > 0
    means = sums / images.clamp(min=1)
    gap = torch.where(seen, means - means[seen].mean(), 0)
    return temperatures - rate * gap / gap.abs().max().clamp(min=torch.finfo(gap.dtype).tiny)
