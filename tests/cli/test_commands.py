"""The command line as a user meets it: the whole road, and bad input of every kind: one line, a hint, exit code 2."""

import csv
import json
import shlex
import shutil
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hostile_files import hostile_files
from PIL import Image
from shared import Run, artifact, refused, runner

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_model, save_weights
from dgad_tk.common import UserError, sha256_file
from dgad_tk.config.training import TrainConfig
from dgad_tk.models import build_model
from exporters.export import export
from exporters.formats import EXPORTERS
from exporters.parity.verify import Tolerance

QUICK = ["--epochs", "1", "--limit-train", "64", "--teacher-model", "resnet8", "--set", "threat.steps=1"]
QUICK += ["--set", "threat.eps=0.15", "--set", "threat.step_size=0.15"]


@pytest.fixture
def dgad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `dgad` in an empty folder; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return runner(capsys)


def test_the_whole_road(dgad: Run, tmp_path: Path) -> None:
    """Train, resume, export both ways, inspect, attack three formats at once with surrogates, attack again."""
    code, out, err = dgad("train", *QUICK)
    assert code == 0, err
    assert out.startswith("runs/digits-dgad-resnet8: resnet8 by dgad, best epoch 1 of 1: clean ")
    code, _, err = dgad("train", "--out", "runs/digits-dgad-resnet8", "--resume", *QUICK)
    assert code == 0, err
    code, out, _ = dgad("train", "--method", "standard", *QUICK, "--out", "plain", "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["run"] == "plain"

    code, out, err = dgad("export", "--format", "onnx")
    assert code == 0, err
    assert out.startswith("student.onnx: onnx of runs/digits-dgad-resnet8/best.safetensors")
    assert "verified against its source" in out
    code, out, err = dgad("export", "runs/digits-dgad-resnet8", "--format", "torchscript", "--json")
    assert code == 0, err
    assert json.loads(out)["file"] == "student.pt"

    code, out, _ = dgad("inspect", "student.onnx")
    assert json.loads(out)["metadata"]["model"] == "resnet8"

    models = ["--model", "student.onnx", "--model", "student.pt", "--model", "plain/best.safetensors"]
    attacks = ["--suite", "fast", "--attack", "transfer:fgsm", "--surrogate", "plain"]
    code, _, err = dgad("attack", *models, *attacks, "--limit", "20", "--trust")
    refused((code, "", err), "'plain' is not a file")
    attacks[-1] = "plain/best.safetensors"
    code, out, err = dgad("attack", *models, *attacks, "--limit", "20", "--trust", "--eps", "0.05,8/255")
    assert code == 0, err
    assert out.count("worst case") == 6
    assert "transfer:best:fgsm@8/255" in out
    written = [json.loads(path.read_text()) for path in tmp_path.glob("attacks/*/results.json")]
    assert {each["model"]["format"] for each in written} == {"onnx", "torchscript", "safetensors"}
    first = next(each for each in written if each["model"]["format"] == "onnx")
    assert "onnxruntime" in first["environment"]["runtime"]

    code, out, err = dgad("attack", "--model", "student.onnx", *attacks, "--limit", "20", "--eps", "0.05", "--json")
    assert code == 0, err
    again = json.loads(out)
    assert [row["robust"] for row in again["attacks"]] == [
        row["robust"] for row in first["attacks"] if row["eps"] == 0.05
    ]


def photos(folder: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for at in range(10):
                pixels = np.full((8, 8, 3), 20 * at + number, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{at}.png")


def test_a_named_dataset_is_found_where_the_record_says(dgad: Run, tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    record = artifact(
        shape=(3, 8, 8),
        classes=["cat", "dog"],
        dataset="imagefolder",
        dataset_options={"data_dir": str(tmp_path / "photos"), "image_size": 8},
    )
    weights, model = tmp_path / "weights.safetensors", build_model("resnet8", in_channels=3, classes=2)
    save_weights(weights, model, record)
    export(weights, "onnx", tmp_path / "student.onnx")
    for name in ("student.onnx", "weights.safetensors"):
        code, out, err = dgad("attack", "--model", name, "--dataset", "imagefolder", "--attack", "fgsm", "--json")
        assert code == 0, err
        assert json.loads(out)["dataset"]["n"] == 20


def test_a_file_from_elsewhere_is_described_and_attacked(dgad: Run, tmp_path: Path) -> None:
    """As torchvision's are: no record, one image at a time, 1000 classes."""
    photos(tmp_path / "photos")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 1000)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(1, 3, 8, 8),), "net.onnx", dynamo=False, opset_version=13, output_names=["y"]
        )
        torch.jit.trace(net, torch.zeros(1, 3, 8, 8)).save("net.pt")
    code, out, err = dgad("inspect", "net.onnx")
    assert code == 0, err
    found = json.loads(out)
    expected = {"precision": "fp32", "input_shape": [3, 8, 8], "layout": "nchw", "batch": 1, "classes": 1000}
    assert expected.items() <= found.items()
    assert found["logits_output"] == "y"
    assert found["metadata"] is None
    assert "1 image at a time" in found["notes"][0]

    images = ["--dataset", "imagefolder", "--data-dir", "photos", "--image-size", 8]
    refused(dgad("inspect", "net.pt", "--trust"), "the shape of its input is unknown")
    code, out, err = dgad("inspect", "net.pt", "--trust", *images)
    assert code == 0, err
    assert json.loads(out)["batch"] == "any"

    normalise = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    code, out, err = dgad("attack", "--model", "net.onnx", *images, *normalise, "--eps", "2/255", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert "tells 1000 classes apart and imagefolder has 2" in err
    assert any("1000 classes" in note for note in document["model"]["notes"])


def test_export_without_a_run(dgad: Run) -> None:
    refused(dgad("export"), "no finished run under 'runs'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--method", "rsald"], "unknown method 'rsald'"),
        (["train", "--student", "resnet9"], "unknown model 'resnet9'"),
        (["train", "--teacher-model", "resnet9"], "unknown model 'resnet9'"),
        (["train", "--dataset", "digit"], "unknown dataset 'digit'"),
        (["train", "--dataset", "imagefolder"], "needs --data-dir"),
        (["train", "--dataset", "imagefolder", "--data-dir", "nowhere"], "nowhere"),
        (["train", "--dataset", "imagefolder", "--data-dir", "empty"], "empty"),
        (["train", "--image-size", "32"], "takes no --image-size"),
        (["train", "--epochs", "0"], "epochs"),
        (["train", "--epochs", "many"], "many"),
        (["train", "--set", "threat.eps=abc", "--set", "threat.step_size=0.1"], "eps must be a fraction of 1"),
        (["train", "--set", "lrr=1"], "unknown key 'lrr'"),
        (["train", "--set", "dgad.beta=1"], "has no option 'beta'"),
        (["train", "--set", "lr"], "--set needs key=value"),
        (["train", "--config", "missing.yaml"], "cannot read config 'missing.yaml'"),
        (["train", "--config", "text.txt"], "must hold keys and values"),
        (["train", "--config", "papre/table4/rn18-trades"], "unknown recipe 'papre/table4/rn18-trades'"),
        (["train", "--config", "circle.yaml"], "extends itself: circle -> circle"),
        (["train", "--config", "misspelt.yaml"], "unknown key 'epoch'"),
        (["train", "--config", "paper/table4/rn18-wrn34-10-dgad"], "has to be given: no public file: train it with"),
        (["train", "--config", "extended.yaml", "--seed", "3"], "has to be given: Chen2021LTD_WRN34_20 of RobustBench"),
        (["train", "--method", "adaad+igmd"], "unknown add-on 'igmd'"),
        (["train", "--method", "trades+igdm"], "'igdm' needs a method that attacks and has a teacher"),
        (["train", "--teacher-mean", "0.5"], "teacher_mean has 1 values, teacher_std 0"),
        (["train", "--teacher-mean", "0.5;0.4", "--teacher-std", "0.2"], "--teacher-mean must be numbers with commas"),
        (["train", "--teacher-mean", "0.5", "--teacher-std", "a,b"], "--teacher-std must be numbers with commas"),
        (["train", "--teacher-mean", "", "--teacher-std", ""], "--teacher-mean must be numbers with commas"),
        (["train", "--teacher-mean", "nan", "--teacher-std", "1"], "--teacher-mean must be numbers with commas"),
        (
            ["train", "--teacher-mean", "0.5", "--teacher-std", "0.2"],
            "are of a teacher from a file, and teacher is auto",
        ),
        (["train", "--checkpoint-minutes", "0"], "checkpoint_minutes"),
        (["train", "--checkpoint-minutes", "often"], "often"),
        (["train", "--download"], "takes no --download"),
        (["train", "--teacher", "missing.onnx"], "no such file or run folder"),
        (["train", "--teacher", "theirs.onnx"], "not a valid ONNX model"),
        (["train", "--teacher", "text.txt"], "cannot read 'text.txt' as a teacher"),
        (["train", "--teacher", "missing.safetensors"], "no such file or run folder"),
        (["train", "--teacher-method", "dgad"], "needs a teacher itself"),
        (["train", "--resume"], "no unfinished run"),
        (["train", "--resume", "--out", "nowhere"], "nothing to resume"),
        (["train", "--out", "empty/../text.txt"], "text.txt"),
        (["train", "--device", "tpu"], "device"),
        (["train", "--precision", "fp4"], "precision"),
        (["export", "nowhere"], "no such file or run folder"),
        (["export", "empty"], "holds no best.safetensors"),
        (["export", "text.txt"], "as weights of `dgad train`: it is text that begins"),
        (["export", "w.safetensors", "--format", "onyx"], "unknown format 'onyx'"),
        (["export", "w.safetensors", "--opset", "9"], "--opset must be 18 to 23"),
        (["export", "w.safetensors", "--output", "x.pt"], "must end in .onnx"),
        (["export", "w.safetensors", "--output", "theirs.onnx"], "was not written by dgad"),
        (["attack"], "--model"),
        (["attack", "--model", "missing.onnx"], "no such file: 'missing.onnx'"),
        (["attack", "--model", "w.safetensors", "--suite", "ful"], "unknown suite 'ful'"),
        (["attack", "--model", "w.safetensors", "--attack", "pgdd"], "unknown attack 'pgdd'"),
        (["attack", "--model", "w.safetensors", "--eps", "abc"], "eps must be a fraction of 1"),
        (["attack", "--model", "w.safetensors", "--eps", "8"], "eps must be between 0 and 1"),
        (["attack", "--model", "w.safetensors", "--eps", "0"], "--eps must be above 0"),
        (["attack", "--model", "w.safetensors", "--eps", ""], "eps must be a fraction of 1"),
        (["attack", "--model", "w.safetensors", "--norm", "l7"], "unknown norm 'l7'"),
        (["attack", "--model", "w.safetensors", "--split", "trian"], "unknown split 'trian'"),
        (["attack", "--model", "w.safetensors", "--limit", "0"], "--limit must be at least 1"),
        (["attack", "--model", "w.safetensors", "--batch-size", "0"], "batch-size"),
        (["attack", "--model", "w.safetensors", "--dataset", "digit"], "unknown dataset 'digit'"),
        (["attack", "--model", "w.safetensors", "--set", "pgd.step=3"], "has no parameter 'step'"),
        (["attack", "--model", "w.safetensors", "--set", "pdg.steps=3"], "unknown attack 'pdg'"),
        (["attack", "--model", "w.safetensors", "--set", "steps=3"], "--set needs ATTACK.key=value"),
        (["attack", "--model", "w.safetensors", "--surrogate", "missing.onnx"], "no such file: 'missing.onnx'"),
        (
            ["attack", "--model", "w.safetensors", "--surrogate", "c3.safetensors", "--attack", "transfer:pgd"],
            "surrogate",
        ),
        (["attack", "--model", "c3.safetensors"], "takes images of shape (3, 8, 8)"),
        (["attack", "--model", "theirs.onnx"], "not a valid ONNX model"),
        (["attack", "--model", "w.safetensors", "--output", "text.txt/x"], "text.txt"),
        (["attack", "--model", "w.safetensors", "--output", "text.txt"], "text.txt"),
        (["attack", "--model", "w.safetensors", "--output", "theirs"], "was not written by dgad"),
        (["attack", "--model", "w.safetensors", "--eps", "0.1,0.1"], "two rows would be called"),
        (["attack", "--model", "w.safetensors", "--surrogate", "w.safetensors"], "no transfer attack"),
        (["attack", "--model", "w.safetensors", "--set", "autoattack.steps=3"], "'autoattack' does not run"),
        (["attack", "--model", "w.safetensors", "--seed", "-1"], "seed"),
        (["attack", "--model", "letters.safetensors"], "knows the classes a, b, c, d, … (10), digits has 0, 1, 2, 3"),
        (["export", "w.safetensors", "--output", "text.txt/x.onnx"], "text.txt"),
        (["train", "--seed", "99999999999999999999999"], "seed"),
        (["train", "--limit-train", "1"], "limit_train"),
        (["train", "--set", "lr=0.1", "--set", "lr.x=1"], "'lr' was set to 0.1 before"),
        (["inspect", "text.txt"], "by its suffix"),
        (["list", "atacks"], "unknown table 'atacks'"),
        (["trian"], "trian"),
        (["train", "--epoch", "3"], "--epoch"),
    ],
)
def test_bad_input(dgad: Run, weights: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    shutil.copy(weights, "w.safetensors")
    save_weights(Path("c3.safetensors"), build_model("resnet8", in_channels=3, classes=10), artifact(shape=(3, 8, 8)))
    Path("text.txt").write_text("just words")
    Path("theirs.onnx").write_bytes(b"somebody's work")
    save_weights(Path("letters.safetensors"), load_model(weights)[0], artifact(classes=list("abcdefghij")))
    Path("circle.yaml").write_text("extends: circle.yaml\n")
    Path("misspelt.yaml").write_text("extends: default\nepoch: 3\n")
    Path("extended.yaml").write_text("extends: fair/table4/rn18-wrn34-20-rslad\nepochs: 3\n")
    Path("empty").mkdir()
    Path("theirs").mkdir()
    Path("theirs/results.json").write_text('{"schema": "somebody/else"}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused(dgad(*arguments), message)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_hostile_model_files(dgad: Run, tmp_path: Path) -> None:
    for name, message in hostile_files(tmp_path).items():
        refused(dgad("attack", "--model", name, "--dataset", "digits"), message)
    assert not Path("exploded").exists()


def test_channels_that_do_not_fit(dgad: Run, weights: Path, tmp_path: Path) -> None:
    """A grey model on a folder of colour photographs."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(10):
            for number in range(2):
                path = tmp_path / "photos" / split / f"{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    export(weights, "onnx", Path("student.onnx"))
    options = ["--dataset", "imagefolder", "--data-dir", "photos", "--image-size", "8"]
    refused(dgad("attack", "--model", "student.onnx", *options), "takes images of shape (1, 8, 8)")
    refused(dgad("train", *options, "--teacher", weights), "takes 1 channels, 'imagefolder' has 3")


def test_onnx_from_elsewhere_needs_its_images_named(dgad: Run, weights: Path) -> None:
    import onnx

    export(weights, "onnx", Path("student.onnx"))
    proto = onnx.load("student.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, "theirs.onnx")
    refused(dgad("attack", "--model", "theirs.onnx"), "carries no dgad metadata record")
    code, out, err = dgad("attack", "--model", "theirs.onnx", "--dataset", "digits", "--limit", "10", "--quiet")
    assert code == 0, err
    assert "worst case" in out


def test_a_disk_that_fills_up(dgad: Run, weights: Path, tmp_path: Path) -> None:
    """Writing past a limit on the size of files, as a full disk does, in every writer; the process goes on."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    results = []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        results.append(dgad("export", weights))
        results.append(dgad("export", weights, "--format", "torchscript"))
        results.append(dgad("train", "--method", "standard", *QUICK))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    for result in results:
        refused(result, "File too large")
    assert not list(tmp_path.glob("*.onnx"))
    assert not list(tmp_path.glob("*.pt"))


def test_strangers_code_is_not_run_to_see_whose_it_is(
    dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(weights, "torchscript", Path("student.pt"))

    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("torch.jit.load", never)
    with pytest.raises(AssertionError, match="opened"):  # only to verify the new file, after the old one was looked at
        export(weights, "torchscript", Path("student.pt"))
    Path("student.pt").write_bytes(b"theirs")
    refused(dgad("export", weights, "--format", "torchscript"), "was not written by dgad")


def test_the_table_is_whole_without_a_terminal(dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    options = ["--attack", "transfer:pgd", "--surrogate", weights, "--limit", "10"]
    code, out, err = dgad("attack", "--model", weights, *options)
    assert code == 0, err
    assert "transfer:weights:pgd" in out
    assert "95 % interval" in out


def test_an_interrupt_says_how_to_go_on(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command it prints ends the run that Ctrl-C stopped, auto teacher and all."""
    from cli.printing.progress import TrainingProgress

    def interrupting(self: TrainingProgress, state: Any) -> None:
        if state.role == "teacher" and state.epoch == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "__call__", interrupting)
        code, out, err = dgad("train", *QUICK, "--epochs", "2", "--out", "a run")
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
        code, _, err = dgad("train", *QUICK, "--teacher", "teacher.pt", "--trust", "--out", "r")
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


def test_a_bug_keeps_its_traceback(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **more: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("dgad_tk.training.train.train", broken)
    code, _, err = dgad("train")
    assert code == 3
    assert "ZeroDivisionError: oops" in err
    assert "please report" in err


def test_a_full_disk_is_one_line(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device", "runs/x/last.ckpt")

    monkeypatch.setattr("dgad_tk.training.train.train", full)
    refused(dgad("train"), "cannot use 'runs/x/last.ckpt': No space left on device")


def test_a_failed_parity_check_is_exit_code_1(dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = replace(EXPORTERS["onnx"], tolerance=Tolerance(-1.0, 1.0, 1.0))
    monkeypatch.setitem(EXPORTERS, "onnx", never)
    code, out, err = dgad("export", weights)
    assert (code, out) == (1, "")
    assert "differs from its source" in err
    assert not Path("student.onnx").exists()
    assert Path("student.onnx.failed").exists()


@pytest.mark.parametrize("what", ["attacks", "datasets", "formats", "methods", "models", "recipes", "suites"])
def test_lists(dgad: Run, what: str) -> None:
    code, out, _ = dgad("list", what)
    assert code == 0
    assert len(out.splitlines()) >= 2


def test_version_and_help(dgad: Run) -> None:
    assert dgad("--version")[:2] == (0, "dgad 0.1.0\n")
    code, out, _ = dgad("train", "--help")
    assert code == 0
    assert "--teacher-model" in out
    code, out, _ = dgad()
    assert code == 0
    assert "Commands" in out


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


def test_lists_hold_what_is_no_row(dgad: Run) -> None:
    assert "\n+igdm " in dgad("list", "methods")[1]
    listed = dgad("list", "models")[1]
    assert "\ntorchvision:NAME  " in listed
    assert "\nwrn-D-K " in listed
    assert "11,173,962 parameters for 3 channels and 10 classes" in listed
    assert "\npaper/table1/cifar10-wrn34-10-pgd-at " in dgad("list", "recipes")[1]


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
    code, out, err = dgad("train", "--config", "mine.yaml", *QUICK, "--teacher", "auto", "--quiet", "--out", "r")
    assert code == 0, err
    _, paper = out.splitlines()
    assert paper.startswith("paper: clean 87.58, AA 50.59 (test set, Table 4, second hand); here: clean ")
    assert paper.endswith(" on val")
    assert yaml.safe_load(Path("r/config.yaml").read_text())["paper"]["row"] == "DGAD, ResNet-18 from WRN-34-10"
    assert "paper" not in Path("r/teacher/config.yaml").read_text().replace("paper: {}", "")
    code, again, err = dgad("train", "--out", "r", "--resume", "--quiet")
    assert code == 0, err
    assert again == out
    code, out, _ = dgad("train", "--config", "mine.yaml", *QUICK, "--method", "standard", "--quiet", "--out", "s")
    assert code == 2  # the method's options are another's; but it needs no teacher
    code, out, _ = dgad("train", "--out", "r", "--resume", "--json", "--quiet")
    assert json.loads(out)["paper"]["figures"] == {"clean": 87.58, "aa": 50.59}


def test_model_files_teach_as_their_weights_do(dgad: Run, weights: Path) -> None:
    """ONNX, TorchScript and safetensors of one teacher: the same first step, and the same on resuming."""
    options = [*QUICK, "--batch-size", "64", "--quiet"]
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
        code, _, err = dgad("train", *QUICK, "--epochs", "2", "--teacher", "teacher.onnx", "--out", "r")
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
    import torch

    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError("opened")

    torch.save(load_model(weights)[0].get_submodule("net").state_dict(), "theirs.pt")
    monkeypatch.setattr("torch.jit.load", never)
    code, _, err = dgad("train", *QUICK, "--teacher", "theirs.pt", "--quiet")
    assert code == 0, err
    Path("torn.pt").write_bytes(Path("theirs.pt").read_bytes()[:5000])
    refused(dgad("train", *QUICK, "--teacher", "torn.pt"), "torn.pt")


def test_model_files_that_do_not_fit(dgad: Run, weights: Path, tmp_path: Path) -> None:
    import onnx

    net = build_model("resnet8", in_channels=3, classes=10)
    save_weights(Path("c3.safetensors"), net, artifact(shape=(3, 8, 8)))
    letters = artifact(classes=list("abcdefghij"))
    save_weights(Path("letters.safetensors"), load_model(weights)[0], letters)
    for name in ("c3", "letters"):
        export(Path(f"{name}.safetensors"), "onnx", Path(f"{name}.onnx"))
        export(Path(f"{name}.safetensors"), "torchscript", Path(f"{name}.pt"))
    refused(dgad("train", *QUICK, "--teacher", "c3.onnx"), "the teacher takes 3 channels, 'digits' has 1")
    refused(
        dgad("train", *QUICK, "--teacher", "letters.pt", "--trust"), "the teacher knows 10 classes (a, b, c, d, e, ...)"
    )
    export(weights, "onnx", Path("student.onnx"))
    normalised = ["--teacher-mean", "0.3", "--teacher-std", "0.2"]
    refused(dgad("train", *QUICK, "--teacher", "student.onnx", *normalised), "says itself how it normalises")
    proto = onnx.load("student.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, "theirs.onnx")
    two = ["--teacher-mean", "0.3,0.3", "--teacher-std", "0.2,0.2"]
    refused(dgad("train", *QUICK, "--teacher", "theirs.onnx", *two), "takes 1 values here, one per channel, got 2")
    assert not Path("runs").exists()
    code, _, err = dgad("train", *QUICK, "--teacher", "theirs.onnx", *normalised, "--out", "normalised")
    assert code == 0, err
    assert "teacher theirs: " in err
    assert "without the teacher's normalisation" in err
    proto = onnx.load("c3.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, "theirs.onnx")
    refused(
        dgad("train", *QUICK, "--teacher", "theirs.onnx"), "takes images of shape (3, 8, 8), 'digits' has (1, 8, 8)"
    )


def test_time_left_is_told_off_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At the pace of this process: what a resumed run had done before does not count."""
    from cli.printing import progress

    now = [1000.0]
    monkeypatch.setattr("cli.printing.progress.time.monotonic", lambda: now[0])
    with progress.TrainingProgress(quiet=False) as shown:
        shown.show("student", 50, 100, "180 images/s")
        now[0] += 60
        shown.show("student", 51, 100, "180 images/s")
    assert capsys.readouterr().err.splitlines() == [
        "student 50% 180 images/s",
        "student 51% 180 images/s, 49 min left",
    ]
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


def _write_foreign(path: Path, *, mean: float = 0.0, std: float = 1.0) -> None:
    """A network trained for a moment on digits, as others export it: one image (1, 8, 8, 1) at a time, a Softmax at the
    end; and what it was trained with is left to whoever calls it."""
    import warnings

    import torch
    from torch import nn

    from dgad_tk.data import load_dataset

    digits = load_dataset("digits").train
    pixels = torch.from_numpy(digits.take(slice(0, 512)) / np.float32(255))
    x, y = (pixels.permute(0, 2, 3, 1) - mean) / std, torch.from_numpy(digits.labels[:512])

    class ChannelsFirst(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 3, 1, 2)

    net = nn.Sequential(ChannelsFirst(), nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = nn.Sequential(net, nn.Softmax(1)).eval()
        torch.onnx.export(whole, (x[:1],), str(path), dynamo=False, opset_version=13, output_names=["probabilities"])


def test_an_onnx_file_as_others_write_it(dgad: Run, tmp_path: Path) -> None:
    """Fixed batch, channels last, a Softmax, normalisation outside: attacked by flags, and the results say how."""
    command = ["attack", "--model", "theirs.onnx", "--dataset", "digits", "--limit", "60"]
    _write_foreign(Path("theirs.onnx"), mean=0.5, std=0.1)
    code, _, err = dgad(*command)
    assert code == 0, err
    assert "note: theirs.onnx: the file takes images (N, H, W, C)" in err
    assert "note: theirs.onnx: ONNX Runtime is given 1 image at a time" in err
    assert "note: theirs.onnx: gradients come from the logits before the final Softmax" in err
    assert "pixels are" not in err
    (folder,) = tmp_path.glob("attacks/theirs-*")
    without = json.loads((folder / "results.json").read_text())
    code, _, err = dgad(*command, "--mean", "0.5", "--std", "0.1")
    assert code == 0, err
    assert "note: theirs.onnx: for the file, pixels are less 0.5, over 0.1" in err
    found = json.loads((folder / "results.json").read_text())
    assert found["clean"]["accuracy"] > 0.9
    assert found["clean"]["accuracy"] > without["clean"]["accuracy"]
    assert found["model"]["preprocessing"] == {
        "layout": "nhwc",
        "mean": [0.5],
        "std": [0.1],
        "input_range": [0.0, 1.0],
        "logits_output": "probabilities",
    }
    assert any("final Softmax" in note for note in found["model"]["notes"])
    robust = {row["id"]: row["robust"] for row in found["attacks"]}
    assert robust["pgd"] <= robust["fgsm"] < found["clean"]["correct"]
    # (x - 0.5) / 0.1 again, said in another way: the same numbers, but kept under another question.
    before = len(list((folder / "units").iterdir()))
    code, out, err = dgad(*command, "--input-range", "0-10", "--mean", "5", "--json")
    assert code == 0, err
    assert {row["id"]: row["robust"] for row in json.loads(out)["attacks"]} == robust
    assert len(list((folder / "units").iterdir())) == before + 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mean", "a,b"], "--mean must be numbers with commas"),
        (["--std", ""], "--std must be numbers with commas"),
        (["--std", "0"], "--std must be above 0"),
        (["--mean", "127.5"], "--mean must lie in the range of the input, 0 to 1"),
        (["--mean", "0.1,0.2,0.3"], "--mean gives 3 values, the images have 1 channels"),
        (["--input-range", "255"], "--input-range must be two numbers such as 0-255"),
        (["--input-range", "1-0"], "--input-range must rise"),
        (["--layout", "nchv"], "unknown layout 'nchv'"),
        (["--logits-output", "logits"], "has no output 'logits' of logits"),
        (["--model", "ours.safetensors", "--mean", "0.5"], "'ours.safetensors' carries a dgad record"),
    ],
)
def test_bad_interfaces(dgad: Run, weights: Path, flags: list[str], message: str) -> None:
    if "--model" in flags:
        shutil.copy(weights, "ours.safetensors")
    else:
        _write_foreign(Path("theirs.onnx"))
        flags = ["--model", "theirs.onnx", *flags]
    refused(dgad("attack", "--dataset", "digits", "--limit", "10", *flags), message)


@pytest.mark.parametrize(
    ("text", "expected"), [("0-255", (0, 255)), ("-1-1", (-1, 1)), ("-1,1", (-1, 1)), ("-.5--.25", (-0.5, -0.25))]
)
def test_ranges(text: str, expected: tuple[float, float]) -> None:
    from cli.flags.preprocessing import interface_of

    assert interface_of(None, None, text, None, None).input_range == expected


def _write_linear(path: Path, *, images: slice = slice(0, 500), twin: bool = True) -> None:
    """A linear classifier of digits; without `twin` it has an operator that the twin has not, which adds nothing."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from dgad_tk.data import load_dataset

    digits = load_dataset("digits").train
    x, y = digits.take(images).reshape(-1, 64) / 255, np.eye(10)[digits.labels[images]]
    weight = np.linalg.solve(x.T @ x + np.eye(64), x.T @ y).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Identity" if twin else "Unique", ["x"], ["unique"]),
        helper.make_node("ReduceMin", ["unique"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "zero"], ["nothing"]),
        helper.make_node("Add", ["logits", "nothing"], ["y"]),
    ]
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 1, 8, 8]), ("y", ["n", 10]))
    )
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.float32(0).reshape(()), "zero")]
    graph = helper.make_graph(nodes, "digits", [image], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def test_a_file_without_a_twin_is_attacked_without_gradients(dgad: Run) -> None:
    _write_linear(Path("odd.onnx"), twin=False)
    command = ["attack", "--model", "odd.onnx", "--dataset", "digits", "--limit", "20"]
    refused(dgad(*command), "'odd.onnx': the twin has no operator 'Unique'")
    assert "--suite blackbox" in dgad(*command)[2]
    refused(dgad("bench", "odd.onnx", "--robust"), "the twin has no operator 'Unique'")
    few = ["--attack", "square", "--set", "square.queries=50"]
    own = dgad(*command, *few, "--attack", "transfer:fgsm", "--surrogate", "odd.onnx")
    refused(own, "'odd.onnx': the twin has no operator 'Unique'")
    code, out, err = dgad(*command, *few, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert any(note.startswith("there are no gradients: ") for note in document["model"]["notes"])
    assert document["checks"]["verdict"] == "warn"
    (square,) = document["attacks"]
    assert square["robust"] < document["clean"]["correct"]
    code, out, err = dgad(*command, *few, "--dry-run")
    assert code == 0, err
    assert "20 images in under 1 s, extrapolated from 20: shares to" in out


def test_gates_and_a_baseline(dgad: Run, weights: Path) -> None:
    """What the baseline cannot answer is said; exit code 1 with everything written."""
    command = ["attack", "--model", weights, "--limit", "20", "--quiet", "--eps", "0.1"]
    assert dgad(*command, "--attack", "fgsm", "--output", "old")[0] == 0
    code, out, err = dgad(*command, "--attack", "fgsm", "--attack", "pgd", "--output", "new", "--json")
    assert code == 0, err
    assert json.loads(out) == json.loads(Path("new/results.json").read_text())
    gate = ["gate", "new", "--baseline", "old/results.json", "--junit", "ci/junit.xml"]
    code, out, err = dgad(*gate, "--max-drop", "0%", "--min", "worst-case=0%")
    assert code == 0, err
    assert "gate baseline:fgsm passed: " in out
    assert "not compared, since the baseline has no answer: pgd" in out
    code, out, err = dgad(*gate, "--min", "pgd=100%", "--json")
    assert (code, err.count("\n")) == (1, 1)
    assert "failed the gate pgd: " in err
    document = json.loads(out)
    assert document["uncompared"] == ["pgd"]
    assert [each["passed"] for each in document["gates"] if each["name"] == "pgd"] == [False]
    assert '<failure message="pgd: ' in Path("ci/junit.xml").read_text()


@pytest.mark.parametrize("when", ["--dry-run", "--budget=1m", "--quiet"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--norm", "l1"], "no l1 radius is usual for digits"),
        (["--norm", "l1", "--eps", "2"], "attack 'fgsm' has no norm 'l1'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(
    dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch, when: str, flags: list[str], message: str
) -> None:
    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("evaluators.engine.pilot.pilot", never)
    monkeypatch.setattr("evaluators.engine.evaluate", never)
    refused(dgad("attack", "--model", weights, "--limit", "10", when, *flags), message)
    assert not list(Path().rglob("units"))


def test_a_matrix_of_models_and_surrogates(dgad: Run) -> None:
    """What a model's examples do to the model itself is what the white-box attack does, and is marked."""
    _write_linear(Path("a.onnx"))
    _write_linear(Path("b.onnx"), images=slice(500, 1000))
    models = ["--model", "a.onnx", "--model", "b.onnx", "--surrogate", "a.onnx", "--surrogate", "b.onnx"]
    options = ["--dataset", "digits", "--limit", "40", "--eps", "0.05", "--output", "m", "--quiet"]
    attacks = ["--attack", "pgd", "--attack", "transfer:pgd", "--attack", "transfer:jsma"]
    code, out, err = dgad("attack", *models, *attacks, *options)
    assert code == 0, err
    pgd, jsma = json.loads(Path("m/matrix.json").read_text())["tables"]
    results = {path.parent.name[0]: json.loads(path.read_text()) for path in Path("m").glob("*/results.json")}
    own = [results[name]["attacks"][0]["robust_accuracy"] for name in "ab"]
    shares = pgd["robust_accuracy"]
    assert [shares[at][at] for at in range(2)] == own
    assert shares[0][1] > own[1]
    rows = [line.split() for line in out.splitlines() if line.startswith(("a ", "b "))]
    assert rows[0] == ["a", "pgd", "0.05", "robust", f"*{own[0]:.1%}", f"{shares[0][1]:.1%}"]
    success = jsma["success"][1]
    assert rows[3] == ["b", "jsma", "unbounded", "success", f"{success[0]:.1%}", f"*{success[1]:.1%}"]
    assert "* made on this very file" in out
    assert not Path("m/examples").exists()


def test_what_has_no_column_is_told_below_the_table(dgad: Run) -> None:
    _write_linear(Path("a.onnx"))
    options = ["--attack", "autoattack", "--attack", "cw2-paper", "--set", "cw2-paper.max_iter=5"]
    options += ["--attack", "art:hopskipjump", "--set", "art:hopskipjump.samples=2", "--dataset", "digits"]
    code, out, err = dgad("attack", "--model", "a.onnx", *options, "--limit", "10", "--eps", "0.3", "--output", "o")
    assert code == 0, err
    entries = {entry["name"]: entry for entry in json.loads(Path("o/results.json").read_text())["attacks"]}
    stages = entries["autoattack"]["stages"]
    assert "autoattack broke by stage: " + ", ".join(f"{each['name']} {each['broken']}" for each in stages) in out
    assert sum(each["broken"] for each in stages) > 0
    assert f"cw2-paper left {entries['cw2-paper']['accuracy']:.1%} right" in out
    assert "\nart:hopskipjump (first 2)  unbounded" in out
    assert "1/3 art:hopskipjump 100%" not in err
    assert "1/3 " in err
    with Path("o/results.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert float(rows["autoattack"]["ci95_low"]) <= float(rows["autoattack"]["robust_accuracy"])
    assert rows["cw2-paper"]["ci95_high"] == ""


def test_a_budget_is_for_certain_surrogates(dgad: Run, weights: Path) -> None:
    """What a surrogate costs is in the choice, so another one under the same name asks anew."""
    shutil.copy(weights, "s.safetensors")
    command = ["attack", "--model", weights, "--attack", "transfer:fgsm", "--surrogate", "s.safetensors"]
    command += ["--limit", "20", "--budget", "1m", "--output", "o", "--quiet"]
    assert dgad(*command)[0] == 0
    before = json.loads(Path("o/budget.json").read_text())
    assert before["question"]["surrogates"] == {"s": sha256_file(weights)}
    model, record = load_model(weights)
    with torch.no_grad():
        next(model.parameters()).mul_(1.001)
    save_weights(Path("s.safetensors"), model, record)
    assert dgad(*command)[0] == 0
    after = json.loads(Path("o/budget.json").read_text())
    assert after["question"]["surrogates"] == {"s": sha256_file(Path("s.safetensors"))}
    assert before["question"]["surrogates"] != after["question"]["surrogates"]


def test_the_same_attack_goes_on_after_ctrl_c(dgad: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.printing.progress import AttackProgress

    def interrupting(self: AttackProgress, state: Any) -> None:
        if state.number == 2:
            signal.raise_signal(signal.SIGINT)

    command = ["attack", "--model", weights, "--suite", "fast", "--limit", "20", "--output", "o"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(AttackProgress, "__call__", interrupting)
            code, out, err = dgad(*command)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out) == (130, "")
    assert "hint: the same command goes on where it stopped" in err
    (unit,) = Path("o/units").iterdir()
    kept = unit.stat().st_mtime_ns
    code, out, err = dgad(*command)
    assert code == 0, err
    assert unit.stat().st_mtime_ns == kept
    assert len(list(Path("o/units").iterdir())) == 2


def test_list_attacks_names_what_can_be_set(dgad: Run) -> None:
    out = dgad("list", "attacks")[1]
    assert "steps=10 relative_step=0.25 restarts=1 loss=ce" in out
