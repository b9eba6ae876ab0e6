"""Every row of ATTACKS in every norm, on linear models whose margins are known: torch, ONNX and INT8."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_art_attacks import QUICK as ARTS_QUICK
from torch import Tensor, nn
from victims import as_onnx, as_torch

from dgad_tk.artifact import Artifact
from dgad_tk.common import UserError
from dgad_tk.data import Split
from dgad_tk.predictor import Predictor
from evaluators import evaluate, plan
from evaluators import search as engine
from evaluators.attacks import ATTACKS
from evaluators.attacks.autoattack import ensemble
from evaluators.ball import Norm
from exporters import load
from exporters.quantize import save_onnx_int8

SHAPE = (1, 6, 6)
BAND = 1e-4
GRID = 1 / 255
N, WRONG = 16, 2

QUICK: dict[str, dict[str, Any]] = {
    "square": {"queries": 400},
    "cw2": {"binary_search_steps": 5, "max_iter": 100},
    "cw2-paper": {"max_iter": 300, "initial_const": 1.0},
    **{f"apgd-{loss}": {"steps": 40} for loss in ("ce", "dlr", "t")},
    **{name: {"steps": 20} for name in ("fab", "fab-t")},
    **{f"art:{name}": params for name, params in ARTS_QUICK.items()},
}


class Linear(nn.Module):
    """Logits W (x - 1/2), the rows of W whole numbers of 1/32 up to 127/32: INT8 holds them exactly."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        rows = torch.randn(classes, int(np.prod(SHAPE)), generator=torch.Generator().manual_seed(5))
        rows = (rows * 127 / rows.abs().amax(dim=1, keepdim=True)).round() / 32
        self.flatten, self.linear = nn.Flatten(), nn.Linear(rows.shape[1], classes)
        self.linear.weight.data, self.linear.bias.data = rows, -0.5 * rows.sum(dim=1)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.flatten(x))
        return logits


@dataclass(frozen=True)
class Target:
    """A linear model and images away from 0 and 1 that it gets right."""

    predictor: Predictor
    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    step: float

    def margins(self, norm: Norm) -> tuple[np.ndarray, np.ndarray]:
        """Distances to the nearest other class, `(N,)`, and how far the rounding of pixels can move them, `(N,)`."""
        shifts = self.weights[None] - self.weights[self.labels][:, None]  # of each image from its label to each class
        gaps = -np.einsum("nkd,nd->nk", shifts, self.images.reshape(len(self.images), -1) - 0.5)
        dual = np.linalg.norm(shifts, ord={"linf": 1, "l2": 2, "l1": np.inf}[norm], axis=2)
        with np.errstate(invalid="ignore"):
            every, slack = gaps / dual, 0.5 * self.step * np.abs(shifts).sum(axis=2) / dual
        return np.nanmin(every, axis=1), np.nanmax(slack, axis=1)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Target]:
    made: dict[tuple[str, int], Target] = {}

    def make(runtime: str, classes: int) -> Target:
        folder, net = tmp_path_factory.mktemp(runtime), Linear(classes).eval()
        if runtime == "torch":
            predictor = as_torch(net, SHAPE)
        elif runtime == "onnx":
            predictor = as_onnx(net, folder, SHAPE)
        else:
            predictor = as_int8(net, folder)
            assert predictor.precision == "int8"
        images = np.random.default_rng(2).integers(90, 166, size=(N, *SHAPE)).astype(np.float32) / np.float32(255)
        labels = predictor.predict(images).argmax(axis=1)
        return Target(predictor, images, labels, net.linear.weight.double().numpy(), GRID * (runtime == "int8"))

    def once(runtime: str, classes: int) -> Target:
        if (runtime, classes) not in made:
            made[runtime, classes] = make(runtime, classes)
        return made[runtime, classes]

    return once


def as_int8(net: Linear, folder: Path) -> Predictor:
    """Calibrated on images from 0 to 1, so that pixels are rounded to the grid they come from."""
    record = Artifact(
        model="resnet8",
        classes=[str(label) for label in range(net.linear.out_features)],
        input_shape=SHAPE,
        dataset="digits",
        threat={"norm": "linf", "eps": 0.15, "step_size": 0.0375, "steps": 4},
    )
    images = np.linspace(0, 1, 8 * int(np.prod(SHAPE)), dtype=np.float32).reshape(8, *SHAPE)
    save_onnx_int8(net, record, folder / "victim.onnx", images=images, samples=8)
    return load(folder / "victim.onnx")


@pytest.fixture
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, quick in (("APGD", {"steps": 20}), ("FAB", {"steps": 10}), ("Square", {"queries": 100})):
        cls = getattr(ensemble, name)

        def build(*args: Any, cls: Any = cls, quick: Any = quick, **kwargs: Any) -> Any:
            return cls(*args, **{**kwargs, **quick})

        monkeypatch.setattr(ensemble, name, build)
