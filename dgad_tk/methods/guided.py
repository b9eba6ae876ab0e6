"""What an attack asks of the teacher: its answer to every x', to x with its slope, or to x alone."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgad_tk.ascent.directions import finite
from dgad_tk.ascent.inner_max import Objective
from dgad_tk.ascent.losses import kl
from dgad_tk.config.threat import TeacherInAttack
from dgad_tk.methods.base import Batch, Distillation, ObjectiveOn
from dgad_tk.models.trained import parts_of


@dataclass(frozen=True)
class Guide:
    """The teacher as the attack on one batch sees it.

    Attributes:
        teacher: in eval mode with frozen weights.
        x: clean images `(N, C, H, W)`.
        y: labels, int64 `(N,)`.
        clean: its logits on `x`, `(N, K)`; None where the attack asks for those on x' in every step.
        slope: gradient of the label's logit to the image at `x`, `(N, C, H, W)`; None where `clean` is kept fixed.
        temperature: by which the logits that the attack takes are divided, `(N,)`; None leaves them as they are.
    """

    teacher: nn.Module
    x: Tensor
    y: Tensor
    clean: Tensor | None = None
    slope: Tensor | None = None
    temperature: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Its logits on the images of an attack, `(N, K)`, as the attack takes them."""
        logits = self._logits(images)
        return logits if self.temperature is None else logits / self.temperature[:, None]

    def _logits(self, images: Tensor) -> Tensor:
        if self.clean is None:
            logits: Tensor = self.teacher(images)
            return logits
        if self.slope is None:
            return self.clean
        rise = (self.slope * (images - self.x)).flatten(1).sum(dim=1)
        return self.clean + F.one_hot(self.y, self.clean.shape[1]) * rise[:, None]

    def on_clean(self) -> Tensor:
        """Its logits on the clean images, `(N, K)`, without a graph; computed only if the attack did not need them."""
        if self.clean is not None:
            return self.clean
        with torch.no_grad():
            logits: Tensor = self.teacher(self.x)
        return logits

    def of(self, where: Tensor | slice) -> "Guide":
        """The same for the chosen images: bool `(N,)`, or their rows."""
        per_image = {name: getattr(self, name) for name in ("x", "y", "clean", "slope", "temperature")}
        return replace(self, **{name: value[where] for name, value in per_image.items() if value is not None})


def discrepancy(guide: Guide) -> ObjectiveOn:
    """KL(T(x')‖S(x')), with a gradient through both networks (AdaAD, CVPR 2023, eq. 5)."""

    def objective_on(net: nn.Module, rows: slice) -> Objective:
        part = guide.of(rows)
        return lambda images: kl(part(images), net(images))

    return objective_on


@dataclass(frozen=True, kw_only=True)
class Guided(Distillation):
    """A method whose attack maximises KL(T(x')‖S(x')), and so asks the teacher.

    What stands for t(x') in it is a choice. With y the label and < , > a sum over all values of an image:

        exact    t(x'), with the gradient through the teacher, in each of the steps: the papers' own
        linear   t(x), its logit of y moved by <grad_x t_y(x), x' - x>, with the gradient through that product
        none     t(x)

    `linear` is algorithm 2 of SAAD (Lee & Chung, TMLR 2026, https://github.com/HongsinLee/saad); `none` is the attack
    of RSLAD. The loss asks for T(x') in any case. Where it needs T(x) too, that comes from the same forward pass.
    Passes of the teacher per image, with 10 steps and without add-ons:

        exact    10 forward and 10 backward in the attack, 1 forward for T(x'), 1 for T(x) if the loss needs it
        linear    1 forward and  1 backward in the attack, 1 forward for T(x')
        none      1 forward in the attack,                 1 forward for T(x')

    The pass of `linear` runs in the precision of the attack, as do all of `exact`'s; so T(x) is in bfloat16 too if the
    attack is. Entries of the slope that are not finite are replaced as those of the attack's gradients are.

    Attributes:
        teacher_in_attack: `exact`, `linear` or `none`.
    """

    teacher_in_attack: TeacherInAttack = "exact"

    def guide(self, teacher: nn.Module, batch: Batch) -> Guide:
        """The teacher as the attack on this batch shall see it; asked nothing if there is no attack to make."""
        temperature = None if batch.temperatures is None else batch.temperatures[0]
        asked = Guide(teacher, batch.x, batch.y, temperature=temperature)
        if self.teacher_in_attack == "exact" or batch.x_adv is not None:
            return asked
        if self.teacher_in_attack == "none":
            return replace(asked, clean=asked.on_clean())
        found: list[tuple[Tensor, Tensor]] = []
        with batch.inner.context(batch.x.device), torch.enable_grad():
            for rows in parts_of(len(batch.x), batch.most):
                images = batch.x[rows].detach().requires_grad_()
                logits = teacher(images)
                (slope,) = torch.autograd.grad(logits.gather(1, batch.y[rows, None]).sum(), images)
                found.append((logits.detach(), slope))
        clean, slopes = (values[0] if len(found) == 1 else torch.cat(values) for values in zip(*found, strict=True))
        return replace(asked, clean=clean, slope=finite(slopes).contiguous())
