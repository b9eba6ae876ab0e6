"""MODELS: every network that can be a student, a teacher or a surrogate. A new one is a builder and a row here."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dgad_tk.common import lookup
from dgad_tk.models.mobilenet_v2 import mobilenetv2
from dgad_tk.models.resnet import resnet8, resnet18, resnet20

MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "mobilenetv2": mobilenetv2,
}


class Normalize(nn.Module):
    """(x - mean) / std a channel, inside the model, so that eps means the same thing everywhere outside."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def build_model(
    name: str, *, in_channels: int, classes: int, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> nn.Module:
    """A classifier of images in [0, 1]: `(N, in_channels, H, W)` to logits `(N, classes)`, randomly initialised.

    Args:
        name: row of MODELS.
        mean, std: a value a channel, applied inside the model; empty for no normalisation, as in the paper's code.

    Raises:
        UserError: unknown model.
    """
    net = lookup(MODELS, name, "model")(in_channels, classes)
    normalize = Normalize(mean, std) if mean else nn.Identity()
    return nn.Sequential(OrderedDict(normalize=normalize, net=net))


def count_parameters(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in model.parameters())
