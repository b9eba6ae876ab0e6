"""MODELS: every network that can be a student, a teacher or a surrogate. A new one is a class and a row here.

`torchvision:NAME` and `timm:NAME` name networks of these libraries, `wrn-D-K` a wide residual network of any depth and
width, and `path/to/file.py:build` or `package.module:build` a user's own; everything that takes a row takes them too.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dgad_tk.common import UserError, nearest
from dgad_tk.models.libraries import LIBRARIES, Builder
from dgad_tk.models.mobilenet_v2 import MobileNetV2
from dgad_tk.models.own import Own, entry_point_names, own_network
from dgad_tk.models.preact_resnet import PreActResNet
from dgad_tk.models.resnet import ResNet
from dgad_tk.models.trial import check_input
from dgad_tk.models.vgg import VGG
from dgad_tk.models.wide_resnet import WideResNet, wide_resnet_builder

__all__ = ["FAMILIES", "LIBRARIES", "MODELS", "NOTES", "Normalize", "build_model", "check_input", "count_parameters"]
__all__ += ["find_model", "normalised", "source_said"]

MODELS: dict[str, Builder] = {
    "resnet8": partial(ResNet, widths=(16, 32, 64), blocks=(1, 1, 1)),
    "resnet20": partial(ResNet, widths=(16, 32, 64), blocks=(3, 3, 3)),
    "resnet56": partial(ResNet, widths=(16, 32, 64), blocks=(9, 9, 9)),
    "resnet18": partial(ResNet, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2)),
    "resnet34": partial(ResNet, widths=(64, 128, 256, 512), blocks=(3, 4, 6, 3)),
    "preact-resnet18": PreActResNet,
    "mobilenetv2": MobileNetV2,
    "wrn-16-4": partial(WideResNet, depth=16, width=4),
    "wrn-28-10": partial(WideResNet, depth=28, width=10),
    "wrn-34-10": partial(WideResNet, depth=34, width=10),
    "wrn-34-20": partial(WideResNet, depth=34, width=20),
    "vgg16": VGG,
}

NOTES = {
    "resnet8": "the compact student",
    "wrn-34-10": "the usual CIFAR teacher",
    "wrn-34-20": "the strongest of the papers' public teachers",
}
"""What some rows are known for."""

FAMILIES: dict[str, Callable[[str], Builder | None]] = {"wrn-D-K": wide_resnet_builder}
"""Networks with numbers in their names: from a name to its builder, or to None if the name has another form."""


class Normalize(nn.Module):
    """(x - mean) / std per channel, inside the model, so that eps means the same thing everywhere outside."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def find_model(name: str) -> Builder:
    """The builder `(in_channels, classes) -> network` of a row of MODELS, a member of a family or a library's model.

    A user's own network is imported, which runs its code.

    Raises:
        UserError: unknown name, the library is not installed, or a user's own network cannot be imported.
    """
    library, colon, its_name = name.partition(":")
    if library in LIBRARIES and colon:
        return LIBRARIES[library](its_name)
    if not colon and name in MODELS:
        return MODELS[name]
    relatives = (family(name) for family in FAMILIES.values() if not colon)
    if (found := next((builder for builder in relatives if builder), None) or own_network(name)) is not None:
        return found
    file = f"a file and its function are written {name}:FUNCTION" if name.endswith(".py") else ""
    raise UserError(f"unknown model '{name}'", hint=file or nearest(name, [*MODELS, *entry_point_names()]))


def build_model(
    name: str, *, in_channels: int, classes: int, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> nn.Module:
    """A classifier of images in [0, 1]: `(N, in_channels, H, W)` to logits `(N, classes)`, randomly initialised.

    Args:
        name: as for `find_model`.
        mean, std: one value per channel, applied inside the model; empty for no normalisation, as in the paper's code.

    Raises:
        UserError: unknown model, or one that cannot take that many channels.
    """
    return normalised(find_model(name)(in_channels, classes), mean, std)


def normalised(net: nn.Module, mean: Sequence[float] = (), std: Sequence[float] = ()) -> nn.Module:
    """A network with a normalisation before it, as `build_model` makes one; none where `mean` is empty."""
    normalize = Normalize(mean, std) if mean else nn.Identity()
    return nn.Sequential(OrderedDict(normalize=normalize, net=net))


def source_said(name: str) -> dict[str, str]:
    """What a record says of the source of a user's own network or of an entry point; empty for any other."""
    found = find_model(name)
    return found.said() if isinstance(found, Own) else {}


def count_parameters(model: nn.Module) -> int:
    """Number of scalars in all parameters; buffers such as running statistics do not count."""
    return sum(parameter.numel() for parameter in model.parameters())
