"""Residual networks for small images: ResNet-18 as the robustness literature uses it, and the thin CIFAR ones."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, activation after the sum (He et al., CVPR 2016, figure 2)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """3x3 stem of stride 1 without pooling, stages of basic blocks, global average, one linear layer.

    With three stages from 16 channels these are the CIFAR networks of He et al., section 4.2. Where the shape changes,
    the shortcut is a 1x1 convolution (their option B) in place of zero padding. Parameter names are those of the public
    CIFAR checkpoints (conv1, bn1, layer1.0.conv1, ..., linear).

    Args:
        widths: channels of each stage; every stage but the first halves the resolution.
        blocks: basic blocks of each stage.
    """

    def __init__(self, in_channels: int, classes: int, *, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(widths)
        before = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            first_stride = 1 if number == 1 else 2
            stage = [BasicBlock(before, width, first_stride)]
            stage += [BasicBlock(width, width, 1) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            before = width
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for number in range(1, self.stages + 1):
            out = self.get_submodule(f"layer{number}")(out)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits
