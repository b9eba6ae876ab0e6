"""Wide residual networks as robust teachers are published: TRADES' layout, keys and initialisation."""

import re
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from dgad_tk.common import UserError

DEEPEST = 1000
MOST_PARAMETERS = 10**9
"""Of a network that may be built. The largest published one, wrn-106-16, has 4 * 10**8."""


class WideBlock(nn.Module):
    """BN, ReLU, 3x3 convolution, twice. Where the shape changes, the shortcut is a 1x1 convolution after the ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """Blocks of one width; the first changes width and resolution."""

    def __init__(self, in_channels: int, channels: int, *, blocks: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *(WideBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """WRN-depth-width (Zagoruyko & Komodakis, BMVC 2016) with the parameter names of TRADES' checkpoints.

    Theirs also hold `sub_block1`, which no forward pass reads; it is left out. Theirs pools the last feature map by
    8x8; here the average is over the whole map, which is the same for 32x32 images.

    Args:
        depth: 6 n + 4, for n blocks per stage.
        width: factor of the stages' channels 16, 32, 64.
    """

    def __init__(self, in_channels: int, classes: int, *, depth: int, width: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4, got {depth}")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(16, 16 * width, blocks=blocks, stride=1)
        self.block2 = WideStage(16 * width, 32 * width, blocks=blocks, stride=2)
        self.block3 = WideStage(32 * width, 64 * width, blocks=blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(F.relu(self.bn1(out)), 1).flatten(1))
        return logits


def wide_resnet_builder(name: str) -> partial[WideResNet] | None:
    """A wide residual network of any depth D = 6 n + 4 and width K, in TRADES' layout.

    Returns:
        The builder `(in_channels, classes) -> network` of a name such as `wrn-40-2`; None for a name of another form.

    Raises:
        UserError: there is no such network, or it is absurdly large.
    """
    match = re.fullmatch(r"wrn-(\d+)-(\d+)", name, re.ASCII)
    if match is None:
        return None
    if max(map(len, match.groups())) > 6:
        raise UserError(f"model '{name}' is too large to be built", hint="choose a network such as wrn-28-10")
    depth, width = map(int, match.groups())
    if depth < 10 or (depth - 4) % 6:
        below = max(10, depth - (depth - 4) % 6)
        raise UserError(
            f"model '{name}': the depth of a wide residual network is 6 n + 4, at least 10, got {depth}",
            hint=f"wrn-{below}-{max(width, 1)} or wrn-{below + 6}-{max(width, 1)}, for example",
        )
    if width == 0:
        raise UserError(
            f"model '{name}': the width of a wide residual network is at least 1, got 0", hint=f"wrn-{depth}-1"
        )
    if name != f"wrn-{depth}-{width}":
        raise UserError(f"unknown model '{name}'", hint=f"did you mean 'wrn-{depth}-{width}'?")
    # Nearly all of them are in the 3x3 convolutions inside the three stages.
    parameters = (depth - 4) // 6 * 2 * 9 * sum((channels * width) ** 2 for channels in (16, 32, 64))
    if depth > DEEPEST or parameters > MOST_PARAMETERS:
        raise UserError(
            f"model '{name}' would have about {parameters / 1e6:,.0f} million parameters in {depth} layers",
            hint=f"at most {MOST_PARAMETERS / 1e6:,.0f} million and {DEEPEST:,} layers, such as wrn-70-16",
        )
    return partial(WideResNet, depth=depth, width=width)
