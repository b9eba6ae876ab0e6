"""`dgad train` as a user meets it: flags and settings, teachers in files, interrupts, progress."""

import json
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from shared import BRIEF, Run, artifact, refused

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_model, save_weights
from dgad_tk.common import UserError, sha256_file
from dgad_tk.config.training import TrainConfig
from dgad_tk.models import build_model
from exporters.export import export


def test_an_interrupt_says_how_to_go_on(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command it prints ends the run that Ctrl-C stopped, auto teacher and all."""
    from cli.printing.progress import TrainingProgress

    def interrupting(self: TrainingProgress, state: Any) -> None:
        if state.role == "teacher" and state.epoch == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "__call__", interrupting)
        code, out, err = dgad("train", *BRIEF, "--epochs", "2", "--out", "a run")
    assert (code, out) == (130, "")
    (command,) = [line.removeprefix("to go on: ") for line in err.splitlines() if line.startswith("to go on: ")]
    assert command == "dgad train --out 'a run' --resume"
    assert err.count("--resume") == 1
    code, out, err = dgad(*shlex.split(command)[1:], "--quiet")
    assert code == 0, err
    assert out.startswith("a run: resnet8 by dgad, best epoch ")


def test_a_run_whose_teacher_is_a_program_goes_on_with_trust(
    dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cli.printing.progress import TrainingProgress

    def interrupting(self: TrainingProgress, state: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    export(weights, "torchscript", Path("teacher.pt"))
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "__call__", interrupting)
        code, _, err = dgad("train", *BRIEF, "--teacher", "teacher.pt", "--trust", "--out", "r")
    assert code == 130, err
    assert "to go on: dgad train --out r --resume --trust\n" in err
    refused(dgad("train", "--out", "r", "--resume"), "is a program")
    code, _, err = dgad("train", "--out", "r", "--resume", "--trust")
    assert code == 0, err


def test_an_interrupt_before_there_is_a_run(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dgad_tk.training.train.train", interrupted)
    code, _, err = dgad("train")
    assert code == 130
    assert "--resume" not in err
    assert "begins anew" in err


def test_environment_and_flags_in_order(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults, then file, then environment, then flags."""
    from cli.commands.train import _configured

    Path("c.yaml").write_text("epochs: 7\nlr: 0.3\nseed: 5\n")
    monkeypatch.setenv("DGAD_LR", "0.2")
    monkeypatch.setenv("DGAD_SEED", "6")
    config, _ = _configured({"seed": 9}, "c.yaml", [], None, resume=False)
    assert (config.epochs, config.lr, config.seed, config.batch_size) == (7, 0.2, 9, 64)
    monkeypatch.setenv("DGAD_LRR", "1")
    refused(dgad("train"), "DGAD_LRR names no key")


def test_the_default_recipe_is_the_default() -> None:
    from cli.commands.train import _configured

    assert _configured({}, "default", [], None, resume=False) == _configured({}, None, [], None, resume=False)


def test_flags_reach_the_config() -> None:
    """A 0 is a value; a switch that is not set leaves what a file says."""
    from cli.commands.train import _configured
    from cli.flags.values import numbers

    assert numbers("0.49, .48,1e-1", "--teacher-mean") == [0.49, 0.48, 0.1]
    given = {
        "teacher": "net.pt",
        "teacher_mean": [0.5],
        "teacher_std": [0.2],
        "compile": True,
        "checkpoint_minutes": 1.5,
    }
    config, _ = _configured(given, None, [], None, resume=False)
    assert (config.teacher_mean, config.teacher_std, config.compile) == ((0.5,), (0.2,), True)
    assert config.checkpoint_minutes == 1.5


def test_the_teacher_in_the_attack_by_flag_and_by_key(dgad: Run, tmp_path: Path) -> None:
    """The flag is an option of whichever method is trained, and goes before a file's."""
    from cli.commands.train import _configured

    def options(*, flag: str | None = None, settings: list[str] | None = None) -> dict[str, Any]:
        config, _ = _configured({}, "c.yaml", settings or [], None, resume=False, teacher_in_attack=flag)
        return config.method_options

    Path("c.yaml").write_text("method_options: {dgad.teacher_in_attack: none, pcr_weight: 1}\n")
    assert options() == {"dgad.teacher_in_attack": "none", "pcr_weight": 1}
    assert options(flag="linear") == {"pcr_weight": 1, "teacher_in_attack": "linear"}
    assert options(settings=["dgad.teacher_in_attack=linear"])["dgad.teacher_in_attack"] == "linear"
    code, _, err = dgad("train", *BRIEF, "--teacher-in-attack", "linear", "--out", "run")
    assert code == 0, err
    _, record = load_model(Path("run/best.safetensors"))
    assert record.training["method_options"]["teacher_in_attack"] == "linear"
    again = ["train", "--out", "run", "--resume", "--teacher-in-attack"]
    assert dgad(*again, "linear")[0] == 0
    refused(dgad(*again, "none"), "{'teacher_in_attack': 'none'}, not {'teacher_in_attack': 'linear'}")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--teacher-in-attack", "half"], "dgad.teacher_in_attack: Input should be 'exact', 'linear' or 'none'", ""),
        (
            ["--method", "trades", "--teacher-in-attack", "linear"],
            "method 'trades' has no option 'teacher_in_attack'",
            "it is an option of adaad, adaiad, dgad",
        ),
        (
            ["--teacher-in-attack", "linear", "--set", "dgad.teacher_in_attack=none"],
            "option 'teacher_in_attack' of 'dgad' is given twice",
            "drop one",
        ),
    ],
)
def test_a_teacher_that_is_not_asked_so(dgad: Run, words: list[str], message: str, hint: str) -> None:
    result = dgad("train", *words)
    refused(result, message)
    assert hint in result[2]


def test_seed_0_overrides_and_an_absent_switch_does_not(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []

    def caught(config: TrainConfig, **more: Any) -> None:
        seen.append(config)
        raise UserError("enough", hint="enough")

    monkeypatch.setattr("dgad_tk.training.train.train", caught)
    Path("c.yaml").write_text("seed: 5\ncompile: true\n")
    dgad("train", "--config", "c.yaml", "--seed", "0")
    assert (seen[0].seed, seen[0].compile) == (0, True)


def test_a_recipe_is_printed_beside_the_result(dgad: Run) -> None:
    """A run of one's own on digits that takes over what the paper prints; the run folder keeps it."""
    small = "dataset: digits\nstudent: resnet8\nteacher_model: resnet8\nselect_on: val\n"
    Path("mine.yaml").write_text("extends: paper/table4/rn18-wrn34-10-dgad\n" + small)
    code, out, err = dgad("train", "--config", "mine.yaml", *BRIEF, "--teacher", "auto", "--quiet", "--out", "r")
    assert code == 0, err
    _, paper, _ = out.splitlines()
    assert paper.startswith("paper: clean 87.58, AA 50.59 (test set, Table 4, second hand); here: clean ")
    assert paper.endswith(" on val")
    assert yaml.safe_load(Path("r/config.yaml").read_text())["paper"]["row"] == "DGAD, ResNet-18 from WRN-34-10"
    assert "paper" not in Path("r/teacher/config.yaml").read_text().replace("paper: {}", "")
    code, again, err = dgad("train", "--out", "r", "--resume", "--quiet")
    assert code == 0, err
    assert again == out
    code, out, _ = dgad("train", "--config", "mine.yaml", *BRIEF, "--method", "standard", "--quiet", "--out", "s")
    assert code == 2  # the method's options are another's; but it needs no teacher
    code, out, _ = dgad("train", "--out", "r", "--resume", "--json", "--quiet")
    assert json.loads(out)["paper"]["figures"] == {"clean": 87.58, "aa": 50.59}


def test_model_files_teach_as_their_weights_do(dgad: Run, weights: Path) -> None:
    """ONNX, TorchScript and safetensors of one teacher: the same first step, and the same on resuming."""
    options = [*BRIEF, "--batch-size", "64", "--quiet"]
    shutil.copy(weights, "student.safetensors")
    losses = {}
    for format, name in (("", "student.safetensors"), ("onnx", "student.onnx"), ("torchscript", "student.pt")):
        if format:
            export(weights, format, Path(name))
        folder = Path(f"run-{name}")
        code, _, err = dgad("train", *options, "--teacher", name, "--trust", "--out", folder)
        assert code == 0, err
        assert err.startswith("warning: the teacher is right on ")  # an untrained one; the quiet are told too
        assert "teacher/" not in {path.name for path in folder.iterdir()}
        losses[name] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        said = load_model(folder / "best.safetensors")[1].teacher
        assert said == f"resnet8 {sha256_file(Path(name))}"
        code, _, err = dgad("train", "--out", folder, "--resume", "--trust", "--quiet")
        assert code == 0, err
    ours = losses.pop("student.safetensors")
    for found in losses.values():
        for term in ("loss", "l_st", "l_at", "pcr"):
            assert found[term] == pytest.approx(ours[term], abs=1e-4)


def test_a_run_with_a_model_file_as_teacher_resumes(dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.printing.progress import TrainingProgress

    def interrupting(self: TrainingProgress, state: Any) -> None:
        if state.epoch == 1:
            signal.raise_signal(signal.SIGINT)

    export(weights, "onnx", Path("teacher.onnx"))
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "__call__", interrupting)
        code, _, err = dgad("train", *BRIEF, "--epochs", "2", "--teacher", "teacher.onnx", "--out", "r")
    assert code == 130, err
    shutil.copy("teacher.onnx", "aside.onnx")
    export(weights, "onnx", Path("teacher.onnx"), opset=18)
    refused(dgad("train", "--out", "r", "--resume"), "was begun with another teacher")
    shutil.copy("aside.onnx", "teacher.onnx")
    code, out, err = dgad("train", "--out", "r", "--resume")
    assert code == 0, err
    assert "of 2: clean" in out


def test_a_checkpoint_called_pt_is_no_torchscript(dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told apart by what is in the file, and nothing is run to tell."""

    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError("opened")

    torch.save(load_model(weights)[0].get_submodule("net").state_dict(), "theirs.pt")
    monkeypatch.setattr("torch.jit.load", never)
    code, _, err = dgad("train", *BRIEF, "--teacher", "theirs.pt", "--quiet")
    assert code == 0, err
    Path("torn.pt").write_bytes(Path("theirs.pt").read_bytes()[:5000])
    refused(dgad("train", *BRIEF, "--teacher", "torn.pt"), "torn.pt")


def test_model_files_that_do_not_fit(dgad: Run, weights: Path, tmp_path: Path) -> None:
    import onnx

    net = build_model("resnet8", in_channels=3, classes=10)
    save_weights(Path("c3.safetensors"), net, artifact(shape=(3, 8, 8)))
    letters = artifact(classes=list("abcdefghij"))
    save_weights(Path("letters.safetensors"), load_model(weights)[0], letters)
    for name in ("c3", "letters"):
        export(Path(f"{name}.safetensors"), "onnx", Path(f"{name}.onnx"))
        export(Path(f"{name}.safetensors"), "torchscript", Path(f"{name}.pt"))
    refused(dgad("train", *BRIEF, "--teacher", "c3.onnx"), "the teacher takes 3 channels, 'digits' has 1")
    refused(
        dgad("train", *BRIEF, "--teacher", "letters.pt", "--trust"),
        "the teacher knows 10 classes (a, b, c, d, e, ...)",
    )
    export(weights, "onnx", Path("student.onnx"))
    normalised = ["--teacher-mean", "0.3", "--teacher-std", "0.2"]
    refused(dgad("train", *BRIEF, "--teacher", "student.onnx", *normalised), "says itself how it normalises")
    proto = onnx.load("student.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, "theirs.onnx")
    two = ["--teacher-mean", "0.3,0.3", "--teacher-std", "0.2,0.2"]
    refused(dgad("train", *BRIEF, "--teacher", "theirs.onnx", *two), "takes 1 values here, one per channel, got 2")
    assert not Path("runs").exists()
    code, _, err = dgad("train", *BRIEF, "--teacher", "theirs.onnx", *normalised, "--out", "normalised")
    assert code == 0, err
    assert "teacher theirs: " in err
    assert "without the teacher's normalisation" in err
    proto = onnx.load("c3.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, "theirs.onnx")
    refused(
        dgad("train", *BRIEF, "--teacher", "theirs.onnx"),
        "takes images of shape (3, 8, 8), 'digits' has (1, 8, 8)",
    )


def test_time_left_is_told_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """At the pace of this process: what a resumed run had done before does not count."""
    from cli.printing import progress

    now = [1000.0]
    with progress.TrainingProgress(quiet=False, clock=lambda: now[0]) as shown:
        shown.show("student", 50, 100, "180 images/s")
        now[0] += 60
        shown.show("student", 51, 100, "180 images/s")
    assert capsys.readouterr().err.splitlines() == ["student 51% 180 images/s, 49 min left"]
    assert [progress.duration(seconds) for seconds in (5, 89, 90, 5399, 5400, 36000)] == [
        "5 s",
        "89 s",
        "2 min",
        "90 min",
        "1.5 h",
        "10.0 h",
    ]


def test_messages_and_the_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    from cli.printing.progress import TrainingProgress

    for quiet in (False, True):
        shown = TrainingProgress(quiet=quiet)
        shown.message("teacher x: fine")
        shown.message("warning: it is not")
    assert capsys.readouterr().err.splitlines() == ["teacher x: fine", "warning: it is not", "warning: it is not"]


def test_another_process_of_torchrun_is_silent_but_for_errors(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    folders: list[Path | None] = []

    def trained(config: TrainConfig, *, out: Path | None, **more: Any) -> RunFolder:
        folders.append(out)
        return RunFolder(Path("the leader's"))

    def interrupted(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dgad_tk.training.train.train", trained)
    assert dgad("train") == (0, "", "")
    assert folders == [None]  # a name is taken by the leader, once for all
    refused(dgad("train", "--dataset", "digit"), "process 1: unknown dataset 'digit'")
    monkeypatch.setattr("dgad_tk.training.train.train", interrupted)
    assert dgad("train") == (130, "", "")
    monkeypatch.setenv("RANK", "one")
    refused(dgad("train"), "RANK, WORLD_SIZE and LOCAL_RANK must be numbers")
