"""DGAD: Dynamic Guidance Adversarial Distillation."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from dgad_tk.ascent.losses import margin, predicted_wrong, soft_label, squared_gap, swap_label
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods.base import Batch, Step, require
from dgad_tk.methods.guided import Guide, Guided, discrepancy


@dataclass(frozen=True, kw_only=True)
class Dgad(Guided):
    """DGAD. Park & Min, ECCV 2024, https://arxiv.org/abs/2409.01627.

    MAP (section 4.1) sends the samples whose clean image the teacher gets wrong, m_i = 1, to standard training ST, the
    rest to adversarial training AT. ELS (4.2) swaps the teacher's label logit with its largest one where it is wrong:
    T^. PCR (4.4) keeps the student's clean and adversarial predictions together:

        L_ST = 1/n_m       sum_i m_i       KL(T^(x_i)‖S(x_i))
        L_AT = 1/(n - n_m) sum_i (1 - m_i) KL(T^(x'_i)‖S(x'_i))
        L    = n_m/n L_ST + (n - n_m)/n L_AT + beta mean_{i,c} (S_c(x'_i) - S_c(x_i))^2

    x' maximises KL(T(x')‖S(x')), with the gradient through both networks (as in AdaAD); `teacher_in_attack` has
    cheaper ways.

    Where the paper and the released code disagree, the default is as follows, and the other reading is a switch:

    - The paper writes KL(S‖T) and adds L_ST + L_AT; the code computes KL(T‖S) and weighs them as above, which is the
      plain mean over the samples. Default: the code. `subset_weights="equal"` is the paper's equation 8.
    - PCR is a norm in the paper and a mean of squares over all N·K elements in the code, and the paper's weights 5
      (ResNet-18), 10 (MobileNetV2) and 15 (PreActResNet-18) belong to the mean. `pcr` chooses. The released default
      weight is 1.0; here it is the paper's 5.
    - For MobileNetV2 a parenthesis of the released code makes a product, 0.5 [r L_ST + (1 - r)] L_AT with
      r = n_m/n. Default: the formula above for every student. `mobilenet_loss` "released" is the product, "intended"
      is 0.5 [r L_ST + (1 - r) L_AT]. As released, both act only together with PCR.
    - The released code divides by the configured batch size, so the short last batch of an epoch weighs differently
      (`divisor="bs"`), and fails where the teacher is wrong on all of a batch or the batch holds one sample. Here n is
      the true size, an empty subset contributes 0, and a batch of one is a batch.
    - The paper generates x' for AT samples only, but PCR needs it for all, and the code makes it for all.
      `attack_subset="used"` follows the paper where PCR is off; the ST samples then enter the adversarial forward, and
      with it BatchNorm's statistics, as clean images.

    Attributes:
        map: partition by the teacher; off, every sample goes to AT.
        els_clean: swap labels in T(x) of the ST samples.
        els_adv: swap labels in T(x').
        pcr_weight: beta; 0 switches PCR off.
        pcr: `mse_mean` over N·K elements, or the mean over samples of the L2 norm or of its square.
        label_mode: what corrects the teacher where it is wrong (Table 3): `swap` is ELS; `smooth` puts the smoothed
            label in its place; `mix` mixes it with the label. The paper gives neither amount: the defaults are ours.
        smoothing: mass of the smoothed label that all K classes share.
        mixing: weight of the label in the mixture.
    """

    map: bool = True
    els_clean: bool = True
    els_adv: bool = True
    pcr_weight: float = 5.0
    pcr: Literal["mse_mean", "l2norm", "sq_l2"] = "mse_mean"
    subset_weights: Literal["share", "equal"] = "share"
    mobilenet_loss: Literal["plain", "intended", "released"] = "plain"
    divisor: Literal["n", "bs"] = "n"
    attack_subset: Literal["all", "used"] = "all"
    label_mode: Literal["swap", "smooth", "mix"] = "swap"
    smoothing: float = 0.1
    mixing: float = 0.5

    def __post_init__(self) -> None:
        if self.pcr_weight < 0:
            raise ValueError(f"pcr_weight must not be negative, got {self.pcr_weight}")
        for name in ("smoothing", "mixing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.attack_subset == "used" and self.pcr_weight > 0:
            raise ValueError("attack_subset 'used' leaves PCR without adversarial images: it needs pcr_weight 0")
        if self.attack_subset == "used" and self.bn_in_attack != "eval":
            raise ValueError("attack_subset 'used' may leave BatchNorm no batch: it needs bn_in_attack 'eval'")
        if self.mobilenet_loss != "plain" and self.subset_weights == "equal":
            raise ValueError("mobilenet_loss has weights of its own: it needs subset_weights 'share'")

    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        teacher = require(teacher)
        x, y = batch.x, batch.y
        guide = self.guide(teacher, batch)
        teacher_clean = guide.on_clean()
        wrong = predicted_wrong(teacher_clean, y)
        if not self.map:
            wrong = torch.zeros_like(wrong)

        x_adv = self._attack(student, guide, batch, threat, wrong)
        logits_clean = student(x)
        logits_adv = student(x_adv)
        with torch.no_grad():
            teacher_adv = teacher(x_adv)
            target_clean, target_adv = batch.for_clean(teacher_clean), batch.for_adv(teacher_adv)
            if self.els_clean:
                target_clean = self._corrected(target_clean, y, wrong)
            if self.els_adv:
                target_adv = self._corrected(target_adv, y, margin(target_adv, y) < 0)

        kl_adv = self.kl(target_adv, logits_adv)
        l_st = batch.mean_where(self.kl(target_clean, logits_clean), wrong)
        l_at = batch.mean_where(kl_adv, ~wrong)
        # A float of the loss's type: an integer divided by an integer is float32, also in a float64 step.
        n_m = batch.across(wrong.sum()).to(l_at.dtype)
        loss = self._combine(l_st, l_at, n_m, batch)
        terms = {"l_st": l_st, "l_at": l_at, "teacher_wrong": n_m / batch.n}
        if self.pcr_weight > 0:
            terms["pcr"] = batch.mean(self._consistency(logits_clean, logits_adv))
            loss = loss + self.pcr_weight * terms["pcr"]
        of_one = self._weight_of_at(l_st, n_m, batch) * batch.n / (batch.n - n_m).clamp(min=1)
        distilled = torch.where(wrong, 0, of_one * kl_adv)
        return Step(loss, terms, x_adv, logits_adv, logits_clean, distilled, teacher_adv, teacher_clean)

    def _corrected(self, target: Tensor, y: Tensor, where: Tensor) -> Tensor:
        """The teacher's logits `(N, K)`, corrected by the label in the rows `where`."""
        if self.label_mode == "swap":
            return swap_label(target, y, where)
        if self.label_mode == "mix":
            instead = soft_label(target, y, of_logits=1 - self.mixing)
        else:
            instead = soft_label(torch.zeros_like(target), y, of_logits=self.smoothing)
        return torch.where(where[:, None], instead, target)

    def _attack(self, student: nn.Module, guide: Guide, batch: Batch, threat: ThreatModel, wrong: Tensor) -> Tensor:
        if self.attack_subset == "all" or batch.x_adv is not None:
            return self.attack(student, batch, threat, discrepancy(guide))
        rest = ~wrong
        part = replace(batch, x=batch.x[rest], y=batch.y[rest], noise=lambda kind: batch.noise(kind)[rest])
        found = self.attack(student, part, threat, discrepancy(guide.of(rest)))
        return batch.x.masked_scatter(rest[:, None, None, None], found)

    def _combine(self, l_st: Tensor, l_at: Tensor, n_m: Tensor, batch: Batch) -> Tensor:
        share = n_m / (batch.n if self.divisor == "n" else batch.nominal_size)
        if self.mobilenet_loss == "released" and self.pcr_weight > 0:
            return 0.5 * (share * l_st + (1 - share)) * l_at
        if self.subset_weights == "equal":
            return l_st + l_at
        factor = 0.5 if self.mobilenet_loss == "intended" and self.pcr_weight > 0 else 1.0
        return factor * (share * l_st + (1 - share) * l_at)

    def _weight_of_at(self, l_st: Tensor, n_m: Tensor, batch: Batch) -> Tensor:
        """The factor of L_AT in what `_combine` returns."""
        share = n_m / (batch.n if self.divisor == "n" else batch.nominal_size)
        if self.mobilenet_loss == "released" and self.pcr_weight > 0:
            return 0.5 * (share * l_st + (1 - share))
        if self.subset_weights == "equal":
            return torch.ones_like(share)
        return (1 - share) * (0.5 if self.mobilenet_loss == "intended" and self.pcr_weight > 0 else 1.0)

    def _consistency(self, logits_clean: Tensor, logits_adv: Tensor) -> Tensor:
        squared = squared_gap(logits_adv, logits_clean)
        if self.pcr == "mse_mean":
            return squared / logits_clean.shape[1]
        if self.pcr == "sq_l2":
            return squared
        # The norm has no gradient at 0, where the two predictions of a sample are equal.
        return squared.clamp(min=1e-24).sqrt()
