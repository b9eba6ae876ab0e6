"""What every test starts from: no cache of the user's, one thread, fixed seeds."""

import os
import random
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import Victim, artifact, randomise_batch_norm
from trained import trained_on_digits

from dgad_tk.artifacts.weights import save_weights
from dgad_tk.cores import usable_cores
from dgad_tk.data import load_dataset
from dgad_tk.models import build_model

THREADS = int(os.environ.get("OMP_NUM_THREADS") or 1)
"""Of torch in each process of the tests, of which several run at once."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shuffle", type=int, default=0, metavar="SEED", help="run files, and the tests of each, shuffled"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """For `-n auto`. One more than there are cores: a fifth of the time, a worker waits for processes it started."""
    return None if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS") else usable_cores() + 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files stay together, so that what they share is made once; the same order in every worker."""
    seed = config.getoption("--shuffle")
    if seed:
        draw = random.Random(seed)
        files = sorted({item.path for item in items})
        draw.shuffle(files)
        place = {path: index for index, path in enumerate(files)}
        draw.shuffle(items)
        items.sort(key=lambda item: place[item.path])


def pytest_configure(config: pytest.Config) -> None:
    """Before any test, so that fixtures of modules and of the session compute by as many threads as tests do."""
    torch.set_num_threads(THREADS)
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # of the processes that tests start


@pytest.fixture(autouse=True)
def _reproducible(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("DGAD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path_factory.getbasetemp().parent / "dgad-cache"))
    torch.manual_seed(0)
    _keep_torchs_table_of_operators()
    yield
    torch.set_num_threads(THREADS)


def _keep_torchs_table_of_operators() -> None:
    """Once something was exported. torch reads the same table for every export, which takes most of a second."""
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry = getattr(module, "ONNXRegistry", None)
    if registry is not None and not hasattr(registry.from_torchlib, "cache_info"):
        registry.from_torchlib = staticmethod(cache(registry.from_torchlib))


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """float64 everywhere, in the authors' code too: what differs then is the algorithm, not the rounding."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def short_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Square asks at most 50 times, as part of AutoAttack too, which asks 5,000 times and has no setting for it."""
    from evaluators.attacks.autoattack.square.square import Square

    original = Square.search

    def search(attack: Square, *arguments: Any) -> Any:
        attack.queries = min(attack.queries, 50)
        return original(attack, *arguments)

    monkeypatch.setattr(Square, "search", search)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """An untrained resnet8 for digits, with BatchNorm statistics of its own."""
    path = tmp_path / "weights.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = randomise_batch_norm(build_model("resnet8", in_channels=1, classes=10))
    save_weights(path, model, artifact())
    return path


@pytest.fixture(scope="session")
def victim() -> Victim:
    """A network trained for a moment on digits, so that attacks break some images and not others; images and labels."""
    net = trained_on_digits(
        lambda: build_model("resnet8", in_channels=1, classes=10),
        lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9),
        steps=60,
        batch=64,
    )
    test = load_dataset("digits").test
    return net, test.take(slice(0, 48)) / np.float32(255), test.labels[:48]


@pytest.fixture
def digit_images() -> np.ndarray:
    """Sixteen test digits, float32 (16, 1, 8, 8)."""
    split = load_dataset("digits").test
    return np.divide(split.take(slice(0, 16)), np.float32(255), dtype=np.float32)
