"""Models that tell two classes apart by one number per image: a logit, or the probability of class 1.

A logit z is read as the logits (0, z), so that class 1 is the answer above 0. Of a probability p the answers are the
logarithms of (1 - p, p), so that class 1 is the answer above 0.5. Gradients come from a logit z with p = sigmoid(z).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

SIGMOID_ERROR = 2**-22
"""Error of ONNX Runtime's Sigmoid on a CPU, a rational function: 9e-8 was measured near 1e-6; below -18 it gives 0."""
TINY = torch.finfo(torch.float32).tiny
LOGIT = "the file answers with one number per image, taken for the logit of class 1: above 0 the answer is class 1"
PROBABILITY = (
    "the file answers with one number per image, taken for the probability of class 1: above 0.5 the answer is class 1"
)


class TwoLogits(nn.Module):
    """Logits `(N, 2)` of a module that gives one number per image.

    Args:
        net: gives `(N,)`, `(N, 1)` or more axes of size 1.
        to_logit: maps these numbers to logits of class 1; None where they are that.
    """

    def __init__(self, net: nn.Module, to_logit: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.net, self.to_logit = net, to_logit

    def forward(self, x: Tensor) -> Tensor:
        numbers: Tensor = self.net(x)
        z = numbers.reshape(len(x), 1).float()
        z = z if self.to_logit is None else self.to_logit(z)
        return torch.cat([torch.zeros_like(z), z], dim=1)


def logit_of_probability(p: Tensor) -> Tensor:
    """The logit of a probability as float32 has it: 17 at most, and without a gradient at 0 and 1."""
    return p.clamp(min=TINY).log() - (1 - p).clamp(min=2**-25).log()


def probability_of_logits(logits: Tensor) -> Tensor:
    """`(N, 2)` to the probability of class 1, `(N,)`."""
    return (logits[:, 1] - logits[:, 0]).sigmoid()


def log_pair(p: Tensor, smallest: float = TINY) -> Tensor:
    """Probabilities of class 1 `(N,)` as logarithms `(N, 2)`; those below `smallest` count as that."""
    return torch.stack([1 - p, p], dim=1).clamp(min=smallest).log()
