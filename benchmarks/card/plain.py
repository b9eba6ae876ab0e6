"""A training step as one writes it at first: eager, channels-first, nothing folded or frozen but the teacher.

It is honest all the same: the attack asks for the gradient to the images alone, and no step waits for the card.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgad_tk.config.threat import ThreatModel

PCR_WEIGHT = 5.0


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="none").sum(1)


def attacked(objective: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, threat: ThreatModel) -> Tensor:
    x_adv = start
    for _ in range(threat.steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(x_adv).sum(), x_adv)
        x_adv = x_adv.detach() + threat.step_size * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - threat.eps), x + threat.eps).clamp(0, 1)
    return x_adv.detach()


def swapped(logits: Tensor, y: Tensor) -> Tensor:
    """The label's logit and the largest one, exchanged."""
    top = logits.argmax(1, keepdim=True)
    own, most = logits.gather(1, y[:, None]), logits.gather(1, top)
    return logits.scatter(1, y[:, None], most).scatter(1, top, own)


def loss_of(
    student: nn.Module, teacher: nn.Module | None, x: Tensor, y: Tensor, noise: Tensor, threat: ThreatModel
) -> Tensor:
    """PGD adversarial training; with a teacher, DGAD (equations 4 to 9)."""
    student.eval()
    start = x + 0.001 * noise
    if teacher is None:
        x_adv = attacked(lambda z: F.cross_entropy(student(z), y, reduction="none"), x, start.clamp(0, 1), threat)
        student.train()
        loss = F.cross_entropy(student(x_adv), y)
        with torch.no_grad():
            student(x)
        return loss
    x_adv = attacked(lambda z: divergence(teacher(z), student(z)), x, start, threat)
    student.train()
    with torch.no_grad():
        clean = teacher(x)
        wrong = clean.argmax(1) != y
        clean, adv = swapped(clean, y), swapped(teacher(x_adv), y)
    of_clean, of_adv = student(x), student(x_adv)
    distilled = torch.where(wrong, divergence(clean, of_clean), divergence(adv, of_adv)).mean()
    return distilled + PCR_WEIGHT * F.mse_loss(F.softmax(of_adv, 1), F.softmax(of_clean, 1))
