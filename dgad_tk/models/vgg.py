"""VGG-16 with BatchNorm for small images: the convolutions of configuration D and one linear layer."""

import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of convolutions before each pooling."""


class VGG(nn.Module):
    """Simonyan & Zisserman, ICLR 2015, with BatchNorm after each convolution, as it is trained on CIFAR.

    Parameter names are those of the public CIFAR checkpoints (features.0, features.1, ..., classifier). The five
    poolings round up: they bring 32x32 to 1x1 as usual, and a map that is 1x1 earlier stays 1x1.
    """

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for channels, convolutions in _STAGES:
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
                before = channels
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return logits
