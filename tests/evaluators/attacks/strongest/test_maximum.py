"""Three networks whose gradients are masked and whose true margins are known: what AutoAttack misses and this finds.

All are linear in the end. So the best move of every pixel is known, and what it reaches.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from victims import as_onnx

from dgad_tk.artifacts.predictor import Predictor, predictor_of_module
from dgad_tk.artifacts.record import Artifact
from dgad_tk.data import Split
from evaluators.attacks import ATTACKS
from evaluators.attacks.autoattack.ensemble import AutoAttack
from evaluators.attacks.autoattack.square.square import Square
from evaluators.attacks.native import Victim
from evaluators.attacks.result import SearchResult
from evaluators.attacks.strongest.maximum import AutoAttackMax
from evaluators.attacks.strongest.searches import PlateauSquare
from evaluators.engine.evaluate import evaluate
from evaluators.engine.record import Evaluation
from evaluators.plan.rows import plan
from evaluators.target.estimators import to_estimator
from exporters.formats import load
from exporters.onnx_write.int8 import Int8, save_onnx_int8

SHAPE, CLASSES, N = (3, 16, 16), 4, 6
STEP, EPS = 1 / 15, 0.05
AHEAD = 0.92
"""The label leads by this share of what the best move inside the ball takes from it."""


class Head(nn.Module):
    """Logits W (x - 1/2) + b, computed by way of K features; rows of W sum to 0, and class 0 is ahead by `lead`."""

    def __init__(self, lead: float) -> None:
        super().__init__()
        rows = torch.randn(CLASSES, int(np.prod(SHAPE)), generator=torch.Generator().manual_seed(5))
        rows = rows - rows.mean(dim=1, keepdim=True)
        self.flatten, self.features, self.last = (
            nn.Flatten(),
            nn.Linear(rows.shape[1], CLASSES),
            nn.Linear(CLASSES, CLASSES),
        )
        self.features.weight.data, self.features.bias.data = rows, torch.zeros(CLASSES)
        self.last.weight.data, self.last.bias.data = torch.eye(CLASSES), torch.zeros(CLASSES)
        self.features.bias.data[0] = lead
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.features(self.flatten(x)))
        return logits

    @staticmethod
    def reach(move: float) -> float:
        """How much the best move of `move` in every pixel takes from class 0, towards the class that takes least."""
        weight = Head(0.0).features.weight
        return float((weight[1:] - weight[0]).abs().sum(dim=1).min()) * move


class Rounded(nn.Module):
    """A network behind a rounding of its input to 16 levels."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(torch.round(x / STEP) * STEP)
        return logits


class Thresholded(nn.Module):
    """A network behind a threshold: a pixel near 1/2 is taken for 1/2."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(torch.where((x - 0.5).abs() > 0.8 * EPS, x, 0.5))
        return logits


@dataclass(frozen=True)
class Case:
    """A network with images that it gets right, of class 0."""

    net: nn.Module
    images: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(N, dtype=np.int64)

    @property
    def split(self) -> Split:
        return Split((self.images * 255).round().astype(np.uint8), np.arange(N), self.labels)

    @property
    def estimator(self) -> PyTorchClassifier:
        return PyTorchClassifier(self.net, nn.CrossEntropyLoss(), SHAPE, CLASSES, clip_values=(0.0, 1.0))


def _case(name: str) -> Case:
    random = np.random.default_rng(2)
    if name == "rounded":  # on the grid, from where the ball reaches the next level on either side
        images = random.integers(6, 10, size=(N, *SHAPE)).astype(np.float32) * np.float32(STEP)
        return Case(Rounded(Head(AHEAD * Head.reach(STEP))), images)
    images = (0.5 + random.uniform(-0.1, 0.1, size=(N, *SHAPE)) * EPS).astype(np.float32)
    return Case(Thresholded(Head(AHEAD * Head.reach(EPS))), images)


def _broken(attack: AutoAttack, case: Case) -> SearchResult:
    found = attack.run(case.images, case.labels)
    assert found.broken_by is not None
    logits = np.asarray(attack.estimator.predict(found.adversarials))
    assert ((logits.argmax(axis=1) != case.labels) == (found.broken_by >= 0)).all()
    assert (np.abs(found.adversarials - case.images) <= EPS).all()
    return found


@pytest.mark.parametrize("name", ["rounded", "thresholded"])
def test_what_autoattack_misses_behind_a_rounding_or_a_threshold(name: str) -> None:
    """The label's lead is nine tenths of what the best move takes, so every image can be broken."""
    case = _case(name)
    standard = _broken(AutoAttack(case.estimator, eps=EPS), case).broken_by
    attack = AutoAttackMax(case.estimator, eps=EPS, queries=100, steps=20, restarts=1)
    found = _broken(attack, case).broken_by
    assert standard is not None
    assert found is not None
    assert (standard < 0).all()
    assert (found >= 0).all()
    assert {attack.stages[number].name for number in found} <= {"apgd-ce straight", "apgd-t straight", "apgd-ce smooth"}


@pytest.mark.parametrize("name", ["rounded", "thresholded"])
def test_the_same_of_an_onnx_file(name: str, tmp_path: Path) -> None:
    case = _case(name)
    predictor = as_onnx(case.net, tmp_path, SHAPE)
    attack = AutoAttackMax(to_estimator(predictor), eps=EPS, queries=100, steps=20, restarts=1)
    found = _broken(attack, case).broken_by
    assert found is not None
    assert (found >= 0).all()


def _int8(folder: Path) -> tuple[Predictor, Predictor, np.ndarray]:
    """An INT8 file whose features were calibrated too narrowly, its float32 file, and images.

    The features of a clean image are far beyond the ends of their range. There the file's gradient is zero, and most
    small moves change nothing.
    """
    net = Head(0.0)
    noise = np.random.default_rng(3).uniform(0, 1, size=(32, 1, 1, 1)).astype(np.float32) * np.ones(
        (1, *SHAPE), np.float32
    )
    noise[:, :, 0, 0] += np.random.default_rng(4).uniform(-0.1, 0.1, size=(32, 3)).astype(np.float32)
    record = Artifact(
        model="resnet8",
        classes=[str(label) for label in range(CLASSES)],
        input_shape=SHAPE,
        dataset="digits",
        threat={"norm": "linf", "eps": EPS, "step_size": EPS / 4, "steps": 4},
    )
    save_onnx_int8(net, record, folder / "narrow.int8.onnx", images=noise.clip(0, 1), int8=Int8(32))
    other = folder / "sibling"
    other.mkdir()
    # Towards class 0 by so much that the ball just reaches beyond the border.
    shift = net.features.weight.data[0] - net.features.weight.data[1:].mean(dim=0)
    images = 0.5 + 0.6 * EPS * torch.sign(shift).reshape(SHAPE).expand(N, *SHAPE).numpy()
    images = images + np.random.default_rng(5).uniform(-0.1, 0.1, size=images.shape) * EPS
    return load(folder / "narrow.int8.onnx"), as_onnx(net, other, SHAPE), images.astype(np.float32)


def _evaluated(predictor: Predictor, images: np.ndarray, name: str = "autoattack-max") -> Evaluation:
    split = Split((images * 255).round().astype(np.uint8), np.arange(N), np.zeros(N, dtype=np.int64))
    settings = {name: {"steps": 20, "restarts": 1, "queries": 100}} if ATTACKS[name].siblings else {}
    return evaluate(predictor, split, plan([name], norm="linf", eps=[EPS], settings=settings), batch_size=N)


def test_what_autoattack_misses_on_an_int8_file_whose_float32_file_is_at_hand(tmp_path: Path) -> None:
    int8, sibling, images = _int8(tmp_path)
    assert int8.precision == "int8"
    standard = _evaluated(int8, images, "autoattack").outcomes[0].unit
    found = _evaluated(replace(int8, siblings={"fp32": sibling}), images).outcomes[0].unit
    assert standard is not None
    assert found is not None
    assert found.attacked.all()
    assert not standard.broken.any()
    assert found.broken.all()
    assert {found.stages[number] for number in found.broken_by} <= {"apgd-ce on fp32", "apgd-t on fp32"}


def test_square_crosses_plateaus_by_the_guide() -> None:
    """A runtime whose logits come in steps that no single square reaches: by its answers alone nothing is found, though
    the best move takes five times what is needed."""
    net = Head(0.2 * Head.reach(EPS))
    images = torch.full((N, *SHAPE), 0.5).numpy()
    exact, step = net(torch.from_numpy(images[:1])), 2 * Head.reach(EPS)

    def coarse(asked: np.ndarray) -> np.ndarray:
        logits = net(torch.from_numpy(asked))
        lead = logits[:, :1] - logits[:, 1:].amax(dim=1, keepdim=True)
        return torch.where(lead > 0, exact, exact.flip(1) * step).numpy()

    predictor = replace(predictor_of_module(net, SHAPE, format="onnx"), predict=coarse, network=None, precision="int8")
    estimator, labels = to_estimator(predictor), np.zeros(N, dtype=np.int64)
    guide = Victim(to_estimator(predictor_of_module(net, SHAPE, format="safetensors")))
    settings: dict[str, Any] = {"eps": EPS, "queries": 400, "rescale": True, "seed": 0}
    alone = Square(estimator, **settings).run(images, labels).adversarials
    found = PlateauSquare(estimator, guide=guide, **settings).run(images, labels).adversarials
    assert (coarse(alone).argmax(axis=1) == 0).all()
    assert (coarse(found).argmax(axis=1) != 0).all()
    assert (np.abs(found - images) <= EPS + 1e-7).all()
