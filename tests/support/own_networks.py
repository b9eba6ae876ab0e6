"""Source of networks as users write them, and the same networks to compare with."""

from pathlib import Path

SOURCE = '''"""A network of two convolutions; it prints, which is no part of any answer."""

import torch
from torch import nn

print("mine is imported")


class Mine(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(),
        )
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def build(in_channels, classes):
    return Mine(in_channels, classes)


def turned_round(num_classes, in_channels):
    return Mine(in_channels, num_classes)


def by_position(c, k, /):
    return Mine(c, k)


def of_classes(num_classes=1000, width=8):
    return Mine(1, num_classes)


def open_ended(**options):
    return Mine(options["in_channels"], options["classes"])


def lazy(in_channels, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))


def without_arguments():
    return Mine(1, 10)


def nothing(in_channels, classes):
    pass


def frozen(in_channels, classes):
    return Mine(in_channels, classes).requires_grad_(False)


def raising(in_channels, classes):
    raise KeyError("two\\nlines")


def leaving(in_channels, classes):
    raise SystemExit(0)


def seven(in_channels, classes):
    return Mine(in_channels, 7)


def two_channels(in_channels, classes):
    return Mine(2, classes)


class Pair(Mine):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class Unfollowed(Mine):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1 else super().forward(-x)


class Uncopied(Mine):
    def __deepcopy__(self, memo):
        raise RuntimeError("there is one of me")


class Probable(Mine):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Changing(Mine):
    def forward(self, x):
        x -= 0.5
        return super().forward(x)


class CutOff(Mine):
    def forward(self, x):
        return super().forward(x.detach())


class Halved(Mine):
    def __init__(self, in_channels, classes):
        super().__init__(in_channels, classes)
        self.half()

    def forward(self, x):
        return super().forward(x.half()).float()


class Empty(Mine):
    def __init__(self, in_channels, classes):
        super().__init__(in_channels, classes)
        self.to("meta")


def old_weight_norm(in_channels, classes):
    net = Mine(in_channels, classes)
    torch.nn.utils.weight_norm(net.head)
    return net


class Listed(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.layers = [nn.Conv2d(in_channels, 8, 3)]
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.layers[0](x).mean((2, 3)))


class Noisy(Mine):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.rand_like(x))


class Tied(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(n, 8, 3, padding=1) for n in (in_channels, 8, 8))
        self.second.weight = self.first.weight
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        for conv, norm in zip((self.first, self.second), self.norms):
            x = norm(conv(self.stem(x) if conv is self.first else x)).relu()
        return self.head(x.mean((2, 3)))


def of_chance(in_channels, classes):
    width = int(torch.randint(100, 10000, (1,)))
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Linear(width, classes))


ONE = Mine(1, 10)


def one_for_all(in_channels, classes):
    return ONE


class Chatty(Mine):
    def forward(self, x):
        print("chatty is asked")
        return super().forward(x)


NUMBER = 3
'''


def written(path: Path, source: str = SOURCE) -> Path:
    """A file with this source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return path
