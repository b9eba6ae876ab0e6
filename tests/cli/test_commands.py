"""The command line as a user meets it: the whole road, and bad input of every kind: one line, a hint, exit code 2."""

import json
import shutil
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_files import hostile_files
from PIL import Image
from shared import BRIEF, Run, artifact, refused

from dgad_tk.artifacts.weights import load_model, save_weights
from dgad_tk.models import build_model
from exporters.export import export
from exporters.formats import EXPORTERS
from exporters.parity.verify import Tolerance


def test_the_whole_road(dgad: Run, tmp_path: Path) -> None:
    """Train, resume, export both ways, inspect, attack three formats at once with surrogates, attack again."""
    code, out, err = dgad("train", *BRIEF)
    assert code == 0, err
    assert out.startswith("runs/digits-dgad-resnet8: resnet8 by dgad, best epoch 1 of 1: clean ")
    code, _, err = dgad("train", "--out", "runs/digits-dgad-resnet8", "--resume", *BRIEF)
    assert code == 0, err
    code, out, _ = dgad("train", "--method", "standard", *BRIEF, "--out", "plain", "--json", "--quiet")
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
    assert "plain/best.safetensors" in err
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
    code, out, err = dgad("inspect", "net.pt", "--trust", *images, "--json")
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
        (["train", "--method", "kd+saad+igdm"], "'saad' needs a method that attacks and has a teacher, 'kd' is none"),
        (["train", "--method", "adaad+saad+igdm+saad"], "add-on 'saad' is given twice in 'adaad+saad+igdm+saad'"),
        (["train", "--method", "adaad+saad+"], "unknown add-on ''"),
        (["train", "--method", "adaad+saad", "--set", "igdm.weight=2"], "option 'igdm.weight' needs --method"),
        (["train", "--method", "adaad+saad", "--set", "saad.scale=0"], "saad: scale must be positive"),
        (["train", "--method", "adaad+classwise", "--set", "classwise.most=0.9"], "classwise: least and most must"),
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
        (["attack", "--model", "w.safetensors", "--search-precision", "bf8"], "unknown search precision 'bf8'"),
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
    """A grey model on a folder of colour photographs, which is then read as grey."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(10):
            for number in range(2):
                path = tmp_path / "photos" / split / f"{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    export(weights, "onnx", Path("student.onnx"))
    options = ["--dataset", "imagefolder", "--data-dir", "photos", "--image-size", "8"]
    code, out, err = dgad("attack", "--model", "student.onnx", *options, "--attack", "fgsm", "--quiet", "--json")
    assert code == 0, err
    assert json.loads(out)["dataset"]["shape"] == [1, 8, 8]
    code, out, err = dgad("train", *options, "--teacher", weights, "--epochs", "1", "--quiet", "--out", "grey")
    assert code == 0, err
    assert "note: the image folder is read as one channel (grey), since the teacher takes one" in err
    refused(
        dgad("train", *options, "--teacher", weights, "--set", "channels=3"), "takes 1 channels, 'imagefolder' has 3"
    )


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

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    results = []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        results.append(dgad("export", weights))
        results.append(dgad("export", weights, "--format", "torchscript"))
        results.append(dgad("train", "--method", "standard", *BRIEF))
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


def test_lists_hold_what_is_no_row(dgad: Run) -> None:
    assert all(f"\n+{name} " in dgad("list", "methods")[1] for name in ("classwise", "igdm", "saad"))
    listed = dgad("list", "models")[1]
    assert "\ntorchvision:NAME  " in listed
    assert "\nwrn-D-K " in listed
    assert "11,173,962 parameters for 3 channels and 10 classes" in listed
    assert "\npaper/table1/cifar10-wrn34-10-pgd-at " in dgad("list", "recipes")[1]
