"""What needs a CUDA device: `pytest -m gpu`. Without one these tests fail, since nobody asked for them by accident."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from shared import Run, runner

from dgad_tk.artifacts.predictor import predictor_of_module
from dgad_tk.artifacts.weights import load_model
from dgad_tk.models import build_model

pytestmark = pytest.mark.gpu


@pytest.fixture
def dgad(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def test_a_predictor_answers_on_the_card_as_on_the_processor() -> None:
    images = np.random.default_rng(0).random((8, 3, 32, 32), dtype=np.float32)
    model = build_model("resnet8", in_channels=3, classes=10).eval()
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(images).double()).numpy()
    predictor = predictor_of_module(model.float(), (3, 32, 32), format="safetensors")
    assert predictor.runtime.endswith("cuda")
    # Convolutions may run in TF32 here, whose mantissa has 10 bits.
    assert np.abs(predictor.predict(images) - expected).max() <= 2**-8 * np.ptp(expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_three_commands_run_on_the_card(
    dgad: Run, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--method", "trades", "--epochs", "2", "--limit-train", "256", "--device", "cuda", "--out", "run"]
    assert dgad("train", *options, "--precision", precision)[0] == 0
    assert load_model(Path("run/best.safetensors"))[1].method == "trades"
    assert dgad("export", "run", "--format", "onnx")[0] == 0
    code, out, _ = dgad("attack", "--model", "student.onnx", "--attack", "pgd", "--limit", "32", "--json")
    assert code == 0
    assert json.loads(out)["attacks"][0]["status"] == "done"
