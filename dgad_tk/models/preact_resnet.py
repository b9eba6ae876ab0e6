"""Pre-activation ResNet-18 for small images, the Tiny-ImageNet network of the distillation papers."""

import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """BN, ReLU, 3x3 convolution, twice (He et al., ECCV 2016, figure 4e).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, without BN.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class PreActResNet(nn.Module):
    """3x3 stem without BatchNorm, four stages of two blocks, global average, one linear layer.

    Parameter names are those of the public CIFAR checkpoints (conv1, layer1.0.bn1, ..., linear), which have no
    BatchNorm after the last block. Two other kinds of files do not fit: the variant with a final `bn`, and networks for
    64x64 images whose linear layer reads a map pooled to 2x2 (2048 features), while the average here is over the whole
    map.
    """

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(PreActBlock(64, 64, 1), PreActBlock(64, 64, 1))
        self.layer2 = nn.Sequential(PreActBlock(64, 128, 2), PreActBlock(128, 128, 1))
        self.layer3 = nn.Sequential(PreActBlock(128, 256, 2), PreActBlock(256, 256, 1))
        self.layer4 = nn.Sequential(PreActBlock(256, 512, 2), PreActBlock(512, 512, 1))
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits
