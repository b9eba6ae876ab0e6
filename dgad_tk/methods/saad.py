"""Weights by the entropy of the teacher's answers to attacked images, added to another method."""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from dgad_tk.ascent.losses import kl
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import AddOn, Batch, Step, answer_on_adv, answer_on_clean, require


@dataclass(frozen=True, kw_only=True)
class Saad(AddOn):
    """SAAD's weights, an add-on. Lee & Chung, TMLR 2026, https://github.com/HongsinLee/saad.

    Where the teacher is sure of its answer to x', an attack of the student hardly reached it, and the student learns
    little that lasts. With H_i the entropy of T(x'_i), d_i what image i adds to the loss of the base by the teacher's
    answer that S(x'_i) shall give, and minima and maxima over the whole batch:

        w_i = scale (H_i - min H),   v_i = (H_i - min H) / (max H - min H)
        L   = L_base + mean_i (w_i - 1) d_i + beta mean_i (1 - v_i) KL(T(x_i)‖S(x_i))

    so that d_i is weighed by w_i, and all else in L_base stays as it is. `--method adaad+igdm+saad --teacher-in-attack
    linear` is SAAD; its SAAD-C has beta 0.2 (CIFAR-10) or 0.5 (CIFAR-100). d_i is

        ard, iad, rslad  the divergence from T(x_i) with its weights; iad's and adaiad's introspection stays out
        adaad, adaiad    the divergence from T(x'_i) with its weights
        dgad             the same of the AT samples, 0 of the ST samples; PCR stays out
        akd              the teacher's part of the cross-entropy
        +igdm            its divergence too

    The entropy is Shannon's, order 1 of the Renyi's that the paper writes, and of the teacher's own answer, before
    label swapping and temperatures. The average of the weights that SAAD selects is a setting of the run,
    `averaging=swa`. The term of beta takes another clean forward of the student, last, as released.

    Attributes:
        scale: of the weights.
        beta: weight of clean distillation where the teacher is sure.
    """

    scale: float = 5.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}")
        if self.beta < 0:
            raise ValueError(f"beta must not be negative, got {self.beta}")

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        teacher = require(teacher)
        step = self.base.step(student, teacher, batch, threat)
        if step.distilled is None:
            raise TypeError(f"{type(self.base).__name__} does not say what each image adds: it needs Step.distilled")
        unsure = entropy(answer_on_adv(step, teacher))
        low, high = batch.least(unsure.min()), -batch.least(-unsure.max())
        weight = self.scale * (unsure - low)
        loss = step.loss + batch.mean((weight - 1) * step.distilled)
        terms = {**step.terms, "entropy": batch.mean(unsure)}
        if self.beta > 0:
            target = answer_on_clean(step, teacher, batch)
            sure = 1 - (unsure - low) / (high - low).clamp(min=1e-8)
            terms["kl_sure"] = batch.mean(sure * kl(batch.for_clean(target), student(batch.x)))
            loss = loss + self.beta * terms["kl_sure"]
        return replace(step, loss=loss, terms=terms, distilled=weight * step.distilled)


def entropy(logits: Tensor) -> Tensor:
    """-sum_c P_c log P_c in nats, `(N, K)` to `(N,)`."""
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)
