"""What needs a CUDA device: `pytest -m gpu`. Without one these tests fail, since nobody asked for them by accident."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from shared import Run, runner

from dgad_tk.artifacts.predictor import predictor_of_module
from dgad_tk.artifacts.weights import load_model
from dgad_tk.ascent.folded import Folded, autocast
from dgad_tk.config.threat import ThreatModel
from dgad_tk.data import load_dataset
from dgad_tk.data.batches import on_device
from dgad_tk.methods import METHODS, Batch, build_method
from dgad_tk.models import build_model
from dgad_tk.models.trained import shared

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


@pytest.mark.parametrize("name", METHODS)
def test_no_step_waits_for_the_card(name: str) -> None:
    """tests/dgad_tk/methods/test_waiting.py says the same of the operations alone."""
    net = shared(build_model("resnet8", in_channels=3, classes=10).cuda().train())
    teacher = build_model("resnet8", in_channels=3, classes=10).cuda().eval().requires_grad_(False)
    x, y = torch.rand(4, 3, 8, 8, device="cuda"), torch.arange(4, device="cuda")
    batch, threat = Batch(x, y, lambda kind: torch.randn_like(x), 4), ThreatModel.of("linf", 8 / 255, 2)
    method = build_method(name, {})
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            step = method.step(net, teacher if method.needs_teacher else None, batch, threat)
            step.loss.backward()  # type: ignore[no-untyped-call]
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2", "wrn-16-4"])
def test_a_cuda_graph_answers_and_follows_the_weights_as_the_network_does(name: str, precision: str) -> None:
    notes: list[str] = []
    model = build_model(name, in_channels=3, classes=10).cuda()
    plain, replayed = Folded(model), Folded(model, recorded=True, note=notes.append)
    for turn in range(4):
        x = torch.rand(8, 3, 32, 32, device="cuda")
        found = []
        for view in (plain, replayed):
            view.refresh(model)
            images = x.clone().requires_grad_()
            with autocast(precision, x.device):
                logits = view(images)
            found.append((logits.detach().clone(), torch.autograd.grad(logits.square().sum(), images)[0].clone()))
        for ours, theirs in zip(*found, strict=True):
            assert (ours - theirs).abs().max() <= 2**-6 * theirs.abs().max(), turn
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
    assert notes == []


def test_a_split_in_the_cards_memory_is_the_same_images() -> None:
    split = load_dataset("digits").val
    positions = np.array([5, 0, 17])
    for ours, expected in zip(
        on_device(split, positions, torch.device("cuda")), on_device(split, positions, torch.device("cpu")), strict=True
    ):
        assert ours.is_cuda
        assert torch.equal(ours.cpu(), expected)


def test_a_run_with_cuda_graphs_trains_as_one_without(dgad: Run, tmp_path: Path) -> None:
    accuracies = []
    for name, more in (("plain", []), ("graphs", ["--set", "cuda_graph=true"])):
        options = ["--method", "pgd-at", "--epochs", "3", "--limit-train", "512", "--device", "cuda", *more]
        code, _, err = dgad("train", *options, "--out", str(tmp_path / name))
        assert code == 0
        assert "without a graph" not in err
        accuracies.append(load_model(tmp_path / name / "best.safetensors")[1].training["clean_accuracy"])
    assert abs(accuracies[0] - accuracies[1]) <= 0.1
