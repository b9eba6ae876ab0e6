"""A network of the user's own through every command: what runs its code without being told to, and what does not."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_networks import SOURCE, written
from processes import together
from runs import assert_same_run, quick
from shared import Run, refused

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_model, read_weights
from dgad_tk.common import UserError, sha256_file
from dgad_tk.data import load_dataset
from dgad_tk.training.train import train
from exporters.export import Source, export
from exporters.formats import load

SHORT = ["--method", "standard", "--epochs", "1", "--limit-train", "64", "--quiet"]
MARK = "mine is imported"


@pytest.fixture
def mine(dgad: Run) -> Path:
    """A file of networks, a run of one of them, and nothing imported."""
    written(Path("nets/mine.py"))
    code, _, err = dgad("train", "--student", "nets/mine.py:build", *SHORT, "--out", "run")
    assert code == 0, err
    assert err.endswith("next: dgad export --format onnx --trust\n")
    _forget()
    return Path("run/best.safetensors")


def _forget() -> None:
    from dgad_tk.models import own

    own._read.clear()


def test_a_record_runs_nothing_unless_trusted(dgad: Run, mine: Path) -> None:
    """Each command that opens the weights; the file would print if it were run."""
    for command in (
        ["export", "run"],
        ["attack", "--model", mine, "--attack", "fgsm", "--limit", "4"],
        ["inspect", mine],
        ["bench", mine],
        ["train", "--method", "kd", "--teacher", "run", *SHORT[2:]],
        ["train", "--out", "run", "--resume"],
    ):
        result = dgad(*command)
        refused(result, "nets/mine.py:build")
        assert MARK not in result[2], command
    Path("mine.yaml").write_text("student: nets/mine.py:build\nteacher_model: nets/mine.py:build\n")
    refused(dgad("train", "--config", "mine.yaml", "--teacher-model", "resnet8"), "as student, which is source code")
    refused(dgad("train", "--config", "mine.yaml", "--student", "resnet8"), "as teacher_model, which is source code")
    refused(dgad("train", "--teacher-model", "nets/none.py:build"), "cannot read 'nets/none.py'")


def test_the_record_says_what_ran_and_the_export_needs_no_source(dgad: Run, mine: Path) -> None:
    record = read_weights(mine)[1]
    assert record.model == "nets/mine.py:build"
    assert record.network == {"name": "nets/mine.py:build", "source_sha256": sha256_file(Path("nets/mine.py"))}
    code, _, err = dgad("export", "run", "--trust")
    assert code == 0, err
    assert MARK in err
    shutil.rmtree("nets")
    images = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    deployed = load(Path("student.onnx"))
    assert deployed.artifact is not None
    assert deployed.artifact.network == record.network
    code, out, err = dgad("attack", "--model", "student.onnx", "--attack", "fgsm", "--limit", "8", "--json")
    assert code == 0, err
    assert json.loads(out)["attacks"][0]["status"] == "done"
    refused(dgad("export", "run", "--trust"), "there is no file 'nets/mine.py'")
    refused(dgad("train", "--out", "run", "--resume", "--trust"), "no such file")
    # Weights and source that lie together are found together.
    written(Path("elsewhere/mine.py"))
    shutil.copy(mine, "elsewhere/best.safetensors")
    again = load(Path("elsewhere/best.safetensors"), trust=True)
    np.testing.assert_allclose(again.predict(images), deployed.predict(images), atol=1e-4)
    assert not again.notes


def test_what_a_network_prints_is_no_answer_and_tied_weights_are_saved(dgad: Run) -> None:
    written(Path("nets/mine.py"))
    code, out, err = dgad("train", "--student", "nets/mine.py:Chatty", *SHORT, "--out", "chatty", "--json")
    assert code == 0, err
    assert json.loads(out)["run"] == "chatty"
    assert "chatty is asked" in err
    weights = "chatty/best.safetensors"
    for command, *more in (
        ["export", "chatty"],
        ["attack", "--model", weights, "--attack", "fgsm", "--limit", "4"],
        ["inspect", weights],
        ["inspect", weights, "--dataset", "digits", "--limit", "20"],
        ["bench", weights, "--seconds", "0.01", "--robust", "--limit", "4"],
    ):
        code, out, err = dgad(command, *more, "--trust", *["--json"][: command != "inspect" or len(more) > 1])
        assert code == 0, err
        assert json.loads(out)["schema"].startswith(f"dgad/{command}" if command != "attack" else "dgad/results")
        assert "chatty is asked" in err, command
    code, _, err = dgad("train", "--student", "nets/mine.py:Tied", *SHORT, "--out", "tied")
    assert code == 0, err
    model, _ = load_model(Path("tied/best.safetensors"), trust=True)
    weights = dict(model.named_parameters(remove_duplicate=False))
    assert weights["net.first.weight"] is weights["net.second.weight"]


def test_a_source_that_changed_is_said(dgad: Run, mine: Path) -> None:
    """A comment is a change: nobody can tell which change matters."""
    written(Path("nets/mine.py"), f"{SOURCE}# one more line\n")
    message = "the source 'nets/mine.py:build' is not what 'run/best.safetensors' was trained with"
    refused(dgad("export", "run", "--trust"), message)
    refused(dgad("train", "--out", "run", "--resume", "--trust"), "begun with another source of the student")
    code, _, err = dgad("export", "run", "--network", "nets/mine.py:build")
    assert code == 0, err
    assert err.count("note: the source of 'nets/mine.py:build' is not what these weights were trained with") == 1
    refused(dgad("export", "run", "--network", "nets/mine.py:lazy"), "the weights do not fit a nets/mine.py:lazy")
    teacher = ["--teacher", "run", "--teacher-model", "nets/mine.py:build"]
    code, _, err = dgad("train", "--method", "kd", *teacher, *SHORT[2:-1])
    assert code == 0, err
    assert "note: the source of" in err
    assert err.endswith("next: dgad export --format onnx\n")


def test_what_an_exporter_cannot_follow_is_the_networks_fault(dgad: Run) -> None:
    written(Path("mine.py"))
    code, _, err = dgad("train", "--student", "mine.py:Unfollowed", *SHORT, "--out", "run")
    assert code == 0, err
    refused(dgad("export", "run", "--trust"), "mine.py:Unfollowed cannot be written as onnx: ")


def test_an_interrupted_run_goes_on_wherever_its_source_is(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last bit, from a lazy layer's first weights on; the file may move, and is named by hand or trusted."""
    from cli.printing.progress import TrainingProgress

    def interrupting(self: TrainingProgress, state: Any) -> None:
        if (state.epoch, state.step) == (1, 1):
            signal.raise_signal(signal.SIGINT)

    written(Path("nets/mine.py"))
    command = ["train", "--student", "nets/mine.py:lazy", "--method", "pgd-at", "--limit-train", "96", "--epochs", "2"]
    command += ["--batch-size", "32", "--set", "threat.steps=1", "--quiet"]
    assert dgad(*command, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "__call__", interrupting)
        code, _, err = dgad(*command, "--out", "parts")
    assert code == 130
    assert "to go on: dgad train --out parts --resume --trust\n" in err
    Path("nets").rename("moved")
    code, _, err = dgad("train", "--out", "parts", "--resume", "--student", "moved/mine.py:lazy", "--quiet")
    assert code == 0, err
    Path("moved").rename("nets")
    assert RunFolder(Path("parts")).read_config().student == "moved/mine.py:lazy"
    ours, theirs = (
        load_model(Path(name) / "best.safetensors", network="nets/mine.py:lazy")[0] for name in ("parts", "whole")
    )
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def trains_own(folder: Path) -> None:
    import os

    os.chdir(folder)
    train(quick(student="mine.py:build", method="pgd-at", device="cpu", epochs=1), out=folder / "run")


def test_two_processes_train_one_of_their_own(tmp_path: Path) -> None:
    written(tmp_path / "mine.py")
    for child in together(2, trains_own, tmp_path):
        child.result()
    assert read_weights(tmp_path / "run" / "best.safetensors")[1].training["processes"] == 2


def test_modules_that_are_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student and a teacher as objects: they stay as they are, and what comes of them opens by an object too."""
    monkeypatch.chdir(tmp_path)

    def network() -> torch.nn.Module:
        torch.manual_seed(3)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    student, teacher = network(), network()
    config = quick(method="kd", epochs=1)
    folder = train(config, out=tmp_path / "run", student=student, teacher=teacher)
    assert torch.equal(student[1].weight, teacher[1].weight)  # type: ignore[index]
    assert teacher.training
    record = read_weights(folder.best)[1]
    assert (record.model, record.teacher.partition(" ")[0]) == ("python:Sequential", "python:Sequential")
    with pytest.raises(UserError, match="was handed over in Python, so its name alone does not build it"):
        load_model(folder.best)
    trained, _ = load_model(folder.best, network=network())
    assert not torch.equal(trained.get_submodule("net")[1].weight, student[1].weight)  # type: ignore[index]
    exported = export(Source(folder.best, network=network()), "onnx", tmp_path / "mine.onnx")
    images = load_dataset("digits").test.take(slice(0, 8)).astype(np.float32) / 255
    expected = trained(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(load(exported.path).predict(images), expected, atol=1e-4)
    train(config, out=tmp_path / "run", student=network(), teacher=network(), resume=True)
    train(config, out=tmp_path / "again", student=network(), teacher=network())
    assert_same_run(RunFolder(tmp_path / "run"), RunFolder(tmp_path / "again"))
    with pytest.raises(UserError, match="the student python:Flatten has no weights to train"):
        train(config, out=tmp_path / "none", student=torch.nn.Flatten())


def test_entry_points_are_listed_without_being_imported(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from dgad_tk.models import own

    monkeypatch.setattr(own, "entry_points", lambda group: [EntryPoint("theirs", "no_such_module:build", group)])
    code, out, err = dgad("list", "models", "--json")
    assert code == 0, err
    rows = {row["name"]: row["summary"] for row in json.loads(out)["rows"]}
    assert rows["theirs"] == "no_such_module:build of a package"
    assert "FILE.py:FUNCTION" in rows
