"""`dgad train --init`: from weights of any project, and from an ONNX file that is hardened and written again."""

import json
import os
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_networks import written
from processes import together
from runs import assert_same_run, quick
from safetensors.torch import load_file, save_file
from shared import Run, randomise_batch_norm, refused
from torch import Tensor, nn
from trained import trained_on_digits

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import GRAPH, load_model, read_weights
from dgad_tk.common import UserError, sha256_file
from dgad_tk.config.training import TrainConfig
from dgad_tk.models import build_model
from dgad_tk.training.train import train
from exporters.formats import load
from exporters.onnx_student.start import start_from_graph

STILL = ["--method", "pgd-at", "--epochs", "1", "--limit-train", "64", "--set", "lr=1e-9", "--set", "threat.steps=1"]
"""A run that leaves weights as they were, up to rounding; running statistics move."""


def network(classes: int = 10, in_channels: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return randomise_batch_norm(build_model("resnet8", in_channels=in_channels, classes=classes))


def bare(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.get_submodule("net").state_dict().items()}


def starts_as(run: str, expected: dict[str, Tensor], but: tuple[str, ...] = ()) -> None:
    """The run's weights are those expected, except for names in `but`, which are others."""
    found = bare(load_model(Path(run) / "best.safetensors")[0])
    for name, tensor in expected.items():
        if "running" in name or "num_batches" in name:
            continue
        same = found[name].shape == tensor.shape and torch.allclose(found[name], tensor, atol=1e-6)
        assert same == (name not in but), name


def test_a_student_starts_from_weights(dgad: Run) -> None:
    """The network is told from the weights; the record says which file they were."""
    expected = bare(network())
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in expected.items()}}, "theirs.pt")
    code, _, err = dgad("train", "--init", "theirs.pt", *STILL, "--out", "a")
    assert code == 0, err
    assert "resnet8, from 'theirs.pt', by pgd-at on digits" in err
    assert "student's first network theirs.pt: " in err
    starts_as("a", expected)
    record = read_weights(Path("a/best.safetensors"))[1]
    assert record.training["init"] == "theirs.pt"
    assert record.training["init_sha256"] == sha256_file(Path("theirs.pt"))
    # From that run; the state dict alone; as safetensors.
    assert dgad("train", "--init", "a", *STILL, "--out", "b", "--quiet")[0] == 0
    starts_as("b", expected)
    save_file(expected, "theirs.safetensors")
    assert dgad("train", "--init", "theirs.safetensors", "--student", "resnet8", *STILL, "--out", "c")[0] == 0
    starts_as("c", expected)


def test_a_head_of_another_size_is_replaced_and_said(dgad: Run) -> None:
    """Its weights are drawn by the seed."""
    expected = bare(network(classes=7))
    torch.save(expected, "seven.pt")
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        code, _, err = dgad("train", "--init", "seven.pt", *STILL, "--seed", seed, "--out", out)
        assert code == 0, err
        line = "note: 'seven.pt' knows 7 classes, the dataset has 10: linear.weight and linear.bias start anew"
        assert err.splitlines().count(line) == 1
        assert "first network" not in err  # its answers mean nothing yet
        starts_as(out, expected, but=("linear.weight", "linear.bias"))
    heads = [bare(load_model(Path(out) / "best.safetensors")[0])["linear.weight"] for out in "abc"]
    assert torch.equal(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2], atol=1e-3)


def test_a_normalisation_comes_along(dgad: Run) -> None:
    save_file(bare(network()), "theirs.safetensors")
    given = ["--init", "theirs.safetensors", "--init-mean", "0.3", "--init-std", "0.4"]
    assert dgad("train", *given, *STILL, "--out", "a")[0] == 0
    save_file({**bare(network()), "mean": torch.tensor([0.3]), "std": torch.tensor([0.4])}, "both.safetensors")
    assert dgad("train", "--init", "both.safetensors", *STILL, "--out", "b")[0] == 0
    assert dgad("train", "--init", "a", *STILL, "--out", "c")[0] == 0
    for run in "abc":
        assert read_weights(Path(run, "best.safetensors"))[1].normalize == {"mean": [0.3], "std": [0.4]}
    refused(dgad("train", *given, *STILL, "--set", "normalize=dataset"), "has a normalisation of its own")
    refused(dgad("train", "--init", "a", *given[2:], *STILL), "says itself how it normalises its images")
    refused(dgad("train", *given[:4], *STILL), "init_mean has 1 values, init_std 0")
    refused(dgad("train", *given[2:], *STILL), "there is no init")


def test_weights_that_do_not_fit(dgad: Run, weights: Path) -> None:
    torch.save(bare(network()), "theirs.pt")
    torch.save(bare(network(in_channels=3)), "colour.pt")
    torch.save({"a": torch.ones(3)}, "other.pt")
    Path("text.pt").write_text("nothing")
    Path("empty").mkdir()
    for init, more, message in (
        ("none.pt", [], "no such file or run folder: 'none.pt'"),
        ("empty", [], "holds no best.safetensors"),
        ("text.pt", [], "cannot read 'text.pt' as weights to start from"),
        ("other.pt", [], "its tensors are of no network known here"),
        ("colour.pt", [], "the resnet8 takes 3 channels, the images have 1"),
        ("theirs.pt", ["--student", "resnet20"], "the file holds a resnet8, not a resnet20"),
        (weights, ["--student", "resnet20"], "holds a resnet8, not a resnet20"),
    ):
        result = dgad("train", "--init", init, *more, *STILL)
        refused(result, message)
        assert "teacher" not in result[2], result[2]
    assert not Path("runs").exists()


def test_a_network_of_ones_own_starts_from_weights_too(dgad: Run) -> None:
    written(Path("mine.py"))
    own = build_model("mine.py:build", in_channels=1, classes=10)
    torch.save(bare(own), "mine.pt")
    code, _, err = dgad("train", "--student", "mine.py:build", "--init", "mine.pt", *STILL, "--out", "a")
    assert code == 0, err
    found = load_model(Path("a/best.safetensors"), trust=True)[0]
    assert torch.allclose(bare(found)["head.weight"], bare(own)["head.weight"], atol=1e-6)
    refused(dgad("train", "--init", "a", *STILL), "opening it runs that source code")
    assert dgad("train", "--init", "a", "--trust", *STILL, "--out", "b")[0] == 0


def deployed(path: Path = Path("theirs.onnx"), *, kept: bool = False) -> Path:
    """A file as it may be found somewhere: of normalised images, one at a time, with a Softmax at its end.

    Args:
        kept: its BatchNorms are in it as such; else they are folded into the convolutions, as exporters do.
    """
    options = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False} if kept else {}
    net = trained_on_digits(
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
        ),
        lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9),
        steps=100,
        batch=64,
    )
    before = nn.Conv2d(1, 1, 1)  # takes (x - 0.3) / 0.4 back, so that the file wants it
    before.weight.data.fill_(0.4)
    assert before.bias is not None
    before.bias.data.fill_(0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = nn.Sequential(before, net, nn.Softmax(dim=1)).eval()
        torch.onnx.export(whole, (torch.zeros(1, 1, 8, 8),), path, dynamo=False, **options)
    return path


FILE = ["--init", "theirs.onnx", "--init-mean", "0.3", "--init-std", "0.4"]
HARDENED = ["--method", "pgd-at", "--epochs", "6", "--set", "lr=0.05", "--set", "threat.steps=4"]
ATTACKED = ["--attack", "apgd-ce", "--limit", "100", "--json", "--quiet"]


def test_a_deployed_file_is_hardened_and_deployed_again(dgad: Run) -> None:
    """Attacks break nearly all of its images before, and leave a quarter and more right afterwards."""
    deployed(kept=True)
    code, out, err = dgad(
        "attack", "--model", "theirs.onnx", "--dataset", "digits", "--mean", "0.3", "--std", "0.4", *ATTACKED
    )
    assert code == 0, err
    before = json.loads(out)
    code, _, err = dgad("train", *FILE, *HARDENED, "--out", "run")
    assert code == 0, err
    assert "onnx:theirs, from 'theirs.onnx', by pgd-at on digits" in err
    assert "note: 'theirs.onnx' is the student: " in err
    record = read_weights(Path("run/best.safetensors"))[1]
    assert record.model == "onnx:theirs"
    assert record.training["init_sha256"] == sha256_file(Path("theirs.onnx"))
    assert record.normalize == {"mean": [0.3], "std": [0.4]}
    os.rename("theirs.onnx", "gone.onnx")  # the weights hold what they need
    code, _, err = dgad("export", "run", "--output", "hard.onnx")
    assert code == 0, err
    code, out, err = dgad("attack", "--model", "hard.onnx", *ATTACKED)
    assert code == 0, err
    after = json.loads(out)
    assert before["clean"]["accuracy"] > 0.9
    assert after["clean"]["accuracy"] > 0.8
    assert before["attacks"][0]["robust_accuracy"] < 0.15
    assert after["attacks"][0]["robust_accuracy"] > 0.25
    # The same network as weights: opened, attacked, taught by, started from.
    images = np.random.default_rng(0).random((9, 1, 8, 8), dtype=np.float32)
    ours, theirs = (load(Path(path)).predict(images) for path in ("run/best.safetensors", "hard.onnx"))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    with pytest.raises(UserError, match="made from an ONNX graph, which this function does not open"):
        load_model(Path("run/best.safetensors"))
    code, _, err = dgad(
        "train", "--method", "kd", "--teacher", "run", "--epochs", "1", "--limit-train", "64", "--out", "t"
    )
    assert code == 0, err
    code, _, err = dgad("train", "--init", "run", *STILL, "--out", "again")
    assert code == 0, err
    one, other = (load_file(f"{run}/best.safetensors") for run in ("run", "again"))
    assert one.keys() == other.keys()
    moving = ("running_mean", "running_var", "num_batches_tracked")
    still = [name for name in one if not name.endswith(moving)]
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-5) for name in still)
    assert torch.equal(one[GRAPH], other[GRAPH])


def test_a_hardened_run_goes_on_where_it_stopped(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit. The file may move, and may not change."""
    from cli.printing.progress import TrainingProgress

    def interrupting(self: TrainingProgress, state: Any) -> None:
        if (state.epoch, state.step) == (1, 1):
            signal.raise_signal(signal.SIGINT)

    deployed()
    command = ["train", *FILE, "--method", "pgd-at", "--epochs", "2", "--limit-train", "96", "--batch-size", "32"]
    command += ["--set", "threat.steps=1", "--set", "averaging=ema", "--quiet"]
    assert dgad(*command, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "__call__", interrupting)
        assert dgad(*command, "--out", "parts")[0] == 130
    shutil.move("theirs.onnx", "moved.onnx")
    refused(dgad("train", "--out", "parts", "--resume"), "'theirs.onnx'")
    shutil.copy("parts/config.yaml", "config.yaml")
    other = Path("moved.onnx").read_bytes().replace(b"pytorch", b"pitorch")
    Path("other.onnx").write_bytes(other)
    refused(dgad("train", "--out", "parts", "--resume", "--init", "other.onnx"), "another file of first weights")
    code, _, err = dgad("train", "--out", "parts", "--resume", "--init", "moved.onnx", "--quiet")
    assert code == 0, err
    ours, theirs = (load_file(f"{run}/best.safetensors") for run in ("parts", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    refused(dgad("train", "--out", "whole", "--resume", "--init", "other.onnx"), "another file of first weights")


def test_files_that_make_no_student(dgad: Run, weights: Path) -> None:
    deployed()
    refused(dgad("train", *FILE, "--student", "resnet8", *STILL), "'theirs.onnx' is the student itself")
    refused(
        dgad("train", *FILE[:2], "--init-mean", "0.3,0.3", "--init-std", "1,1", *STILL), "--init-mean takes 1 values"
    )
    Path("damaged.onnx").write_bytes(Path("theirs.onnx").read_bytes()[:500])
    refused(dgad("train", "--init", "damaged.onnx", *STILL), "not a whole ONNX model")
    code, _, err = dgad("export", weights, "--output", "ours.onnx")
    assert code == 0, err
    refused(dgad("train", "--init", "ours.onnx", *FILE[2:], *STILL), "says itself how it normalises its images")
    code, _, err = dgad("train", "--init", "ours.onnx", *STILL, "--out", "a")
    assert code == 0, err
    with pytest.raises(UserError, match="expected .* or .onnx .a run folder"):
        train(TrainConfig(init=Path("theirs.onnx"), student="resnet8"))


def hardens(folder: Path) -> None:
    os.chdir(folder)
    config = quick(method="pgd-at", device="cpu", epochs=1, init="theirs.onnx")
    train(config, out=folder / "run", start=start_from_graph(Path("theirs.onnx")))


def test_two_processes_harden_one_file(tmp_path: Path) -> None:
    deployed(tmp_path / "theirs.onnx")
    for child in together(2, hardens, tmp_path):
        child.result()
    record = read_weights(tmp_path / "run" / "best.safetensors")[1]
    assert (record.model, record.training["processes"]) == ("onnx:theirs", 2)


def test_a_start_is_the_same_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deployed()
    config = quick(method="pgd-at", device="cpu", epochs=1, init="theirs.onnx")
    folders = [train(config, out=tmp_path / name, start=start_from_graph(Path("theirs.onnx"))) for name in "ab"]
    assert_same_run(*folders)
    assert RunFolder(tmp_path / "a").read_config().student == "onnx:theirs"
