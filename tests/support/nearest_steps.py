"""A small smooth network in float64 that remembers what it was asked, and points that others' attacks ask it about."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from evaluators.target.estimators import Counted

DATA = Path(__file__).parents[1] / "data" / "attacks" / "nearest.npz"
IMAGE = (3, 4, 4)
CLASSES, STEPS, KEPT = 5, 40, 16
"""Attacks are run for STEPS steps, of which the first KEPT are stored."""


class Remembering(nn.Module):
    """Logits V tanh(W (x - 1/2)), class 0 ahead by so much that no single value turns an answer.

    Attributes:
        asked: every batch, float64 `(N, C, H, W)`.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        pixels = int(np.prod(IMAGE))
        self.first = nn.Parameter(0.4 * torch.randn(24, pixels, generator=generator, dtype=torch.float64))
        self.second = nn.Parameter(0.4 * torch.randn(CLASSES, 24, generator=generator, dtype=torch.float64))
        self.register_buffer("ahead", torch.tensor([2.5, 0, 0, 0, 0], dtype=torch.float64))
        self.asked: list[Tensor] = []
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone(memory_format=torch.contiguous_format))
        return torch.tanh((x.flatten(1) - 0.5) @ self.first.T) @ self.second.T + self.ahead


def images(edges: bool, n: int = 4) -> tuple[Tensor, Tensor]:
    """Images of class 0, and their labels; with `edges`, many pixels are black or white."""
    x = torch.rand(64, *IMAGE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = ((x - 0.5) * 3 + 0.5).clamp(0, 1) if edges else 0.35 + 0.3 * x
    with torch.no_grad():
        logits = Remembering()(x)
    sure = (logits.argmax(dim=1) == 0).nonzero()[:n, 0]
    return x[sure], logits[sure].argmax(dim=1)


def asked(net: Remembering, kept: int = KEPT) -> np.ndarray[Any, Any]:
    """The first points that the network was asked about, float64 `(kept, N, C, H, W)`."""
    return torch.stack(net.asked[:kept]).numpy()


def recorded(build: Callable[[Any], Any], x: Tensor, y: Tensor) -> np.ndarray[Any, Any]:
    """The first points of an attack of ours, which `build` makes for an estimator of the network."""
    net = Remembering()
    build(watched(net)).search(x, y, torch.arange(len(x)))
    return asked(net)


def watched(net: nn.Module) -> PyTorchClassifier:
    """An estimator that asks this network itself, not a folded copy."""
    return PyTorchClassifier(Counted(net), loss=nn.CrossEntropyLoss(), input_shape=IMAGE, nb_classes=CLASSES)
