"""Models whose robustness is known, as torch modules and as ONNX files, and images for them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from trained import IMAGES, trained_on_digits

from dgad_tk.artifacts.predictor import Predictor, predictor_of_module
from dgad_tk.data import Split
from exporters.formats import load

SHAPE = (1, 6, 6)


class TwoClassLinear(nn.Module):
    """Logits (s, -s) with s = <w, x> + b: the prediction turns where s = 0."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(int(np.prod(SHAPE)), generator=generator))
        self.b = nn.Parameter(-0.5 * self.w.detach().sum())

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(1) @ self.w + self.b
        return torch.stack([s, -s], dim=1)

    def margins(self, images: np.ndarray, norm: str) -> np.ndarray:
        """Distance of each image to the other class, float64 `(N,)`."""
        w, b = self.w.detach().double().numpy(), float(self.b)
        s = images.reshape(len(images), -1).astype(np.float64) @ w + b
        return np.asarray(np.abs(s) / (np.abs(w).sum() if norm == "linf" else np.linalg.norm(w)))


def linear_split(n: int = 40) -> Split:
    """Images away from 0 and 1, labelled by the linear model itself, so that every clean prediction is right."""
    pixels = np.random.default_rng(2).integers(90, 166, size=(n, *SHAPE), dtype=np.uint8)
    with torch.no_grad():
        labels = TwoClassLinear()(torch.from_numpy(pixels / np.float32(255))).argmax(1).numpy()
    return Split(pixels, np.arange(n), labels)


def one_convolution() -> nn.Module:
    """A small network trained for a moment on digits."""
    return trained_on_digits(
        lambda: nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
        lambda weights: torch.optim.Adam(weights, lr=0.01),
        steps=40,
        batch=IMAGES,
    )


def as_torch(module: nn.Module, shape: tuple[int, int, int] = SHAPE) -> Predictor:
    return predictor_of_module(module, shape, format="torchscript", path=Path("module.pt"), sha256="0" * 64)


def as_onnx(module: nn.Module, folder: Path, shape: tuple[int, int, int] = SHAPE) -> Predictor:
    """The module exported by torch as anyone would, opened as a file of unknown origin."""
    path = folder / "victim.onnx"
    program = torch.onnx.export(
        module.eval().requires_grad_(False),
        (torch.zeros(2, *shape),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    return load(path)
