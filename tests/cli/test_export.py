"""`dgad export` as a user meets it: every format at once, flags that do not apply, and what a failure leaves behind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shared import Run, Victim, artifact, runner

from dgad_tk.artifacts.weights import save_weights
from exporters.export import export
from exporters.formats import EXPORTERS, load
from exporters.parity.verify import EXACT, Tolerance

NEVER = Tolerance(relative=-1.0, agreement=1.0, survival=1.0)


@pytest.fixture
def dgad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], victim: Victim) -> Run:
    """Runs `dgad` in a folder with a network trained on digits; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    save_weights(Path("w.safetensors"), victim[0], artifact())
    return runner(capsys)


def refused(result: tuple[int, str, str], message: str, hint: str) -> None:
    """Exit code 2, nothing on stdout, one line of error and one of hint."""
    assert result[:2] == (2, "")
    error, advice = (line for line in result[2].splitlines() if line.startswith(("error: ", "hint: ")))
    assert message in error
    assert hint in advice


def test_every_format_at_once(dgad: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them fails: the others are written all the same, and it is said at the end."""
    monkeypatch.setitem(EXPORTERS, "torchscript", replace(EXPORTERS["torchscript"], tolerance=NEVER))
    code, out, err = dgad(
        "export", "w.safetensors", "--format", "all", "--calibration-samples", "64", "--reduce-range", "--json"
    )
    assert code == 1
    documents = [json.loads(line) for line in out.splitlines()]
    names = ["student.onnx", "student.fp16.onnx", "student.int8.onnx", "student.pt2"]
    assert [each["file"] for each in documents] == names
    assert [each["format"] for each in documents] == ["onnx", "onnx-fp16", "onnx-int8", "torch-export"]
    assert all(
        each["passed"] and set(each["sets"]) == {"clean", "pgd", "noise", "black", "white"} for each in documents
    )
    assert all(each["sets"]["clean"]["compared"] == 128 for each in documents)
    assert documents[2]["findings"]["calibration"] == "64 clean images, minmax"
    assert load(Path("student.int8.onnx")).artifact.to_dict()["calibration"]["reduce_range"] is True  # type: ignore[union-attr]
    assert "error: torchscript export of 'w.safetensors' differs from its source" in err
    assert err.splitlines()[-1] == "error: 1 of 5 exports failed: torchscript"
    assert {path.name for path in tmp_path.iterdir()} == {"w.safetensors", "student.pt.failed", *names}
    for name in names:
        assert load(Path(name), trust=True).classes == 10


def test_what_it_prints(dgad: Run) -> None:
    code, out, err = dgad("export", "w.safetensors", "--format", "torchscript")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("student.pt: torchscript of w.safetensors, ")
    assert lines[1].startswith("verified against its source (allowed: 0.0001 relative, 100% equal predictions")
    assert [line.split()[0] for line in lines[3:8]] == ["clean", "pgd", "noise", "black", "white"]
    assert lines[8].endswith("PGD images that fool the source fool this file")
    assert err.startswith("student.pt: torchscript, being written and compared\n")  # before it takes time
    assert "note: PyTorch calls TorchScript deprecated" in err
    assert "next: dgad attack --model student.pt --suite full --trust\n" in err


def test_an_int8_file_is_to_be_attacked_by_what_sees_past_its_rounding(dgad: Run) -> None:
    code, _, err = dgad("export", "w.safetensors", "--format", "onnx-int8", "--calibration-samples", "64")
    assert code == 0, err
    assert err.endswith("next: dgad attack --model student.int8.onnx --attack autoattack-max\n")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (
            "--format onnx --calibration-samples 64",
            "--calibration-samples does not apply to --format onnx",
            "onnx-int8",
        ),
        ("--format torch-export --search-exclusions", "--search-exclusions does not apply", "belongs to onnx-int8"),
        ("--format onnx-fp16 --exclude a --exclude b", "--exclude does not apply to --format onnx-fp16", "onnx-int8"),
        ("--format torchscript --opset 20", "--opset does not apply", "belongs to onnx or onnx-fp16 or onnx-int8"),
        ("--format all --opset 17", "--opset must be 18 to 23, got 17", "18 and newer"),
        ("--format all --output x.onnx", "--output names one file", "leave --output out"),
        (
            "--format onnx-int8 --calibration-samples 3",
            "--calibration-samples must be at least 16, got 3",
            "few hundred",
        ),
        ("--format onnx-int8 --calibration-method max", "unknown calibration method 'max'", "minmax"),
        ("--format onnx-int8 --calibrate-on dirty", "unknown --calibrate-on 'dirty'", "clean"),
        ("--format onnx-fp16 --output student.pt", "must end in .onnx", "suffix"),
        ("--format onnx-fp8", "unknown format 'onnx-fp8'", "did you mean 'onnx-fp16'"),
    ],
)
def test_what_does_not_apply(dgad: Run, arguments: str, message: str, hint: str) -> None:
    refused(dgad("export", "w.safetensors", *arguments.split()), message, hint)
    assert [path.name for path in Path().iterdir()] == ["w.safetensors"]


def test_int8_without_its_dataset(dgad: Run, victim: Victim) -> None:
    save_weights(Path("w.safetensors"), victim[0], artifact(dataset="cifar10", dataset_options={"data_dir": "gone"}))
    result = dgad("export", "w.safetensors", "--format", "onnx-int8")
    refused(result, "INT8 is calibrated on training images, and these cannot be had: ", "")
    assert "note: verifying on noise, since " in result[2]


def test_an_exported_program_teaches(dgad: Run) -> None:
    export(Path("w.safetensors"), "torch-export", Path("teacher.pt2"))
    arguments = ["--method", "adaad", "--student", "resnet8", "--epochs", "1", "--limit-train", "64", "--quiet"]
    code, out, err = dgad("train", *arguments, "--teacher", "teacher.pt2", "--trust", "--out", "r", "--json")
    assert code == 0, err
    assert json.loads(out)["run"] == "r"
    code, out, _ = dgad("inspect", "r/best.safetensors")
    assert json.loads(out)["metadata"]["teacher"] == f"resnet8 {load(Path('teacher.pt2'), trust=True).sha256}"


def test_an_exported_program_is_attacked(dgad: Run) -> None:
    export(Path("w.safetensors"), "torch-export", Path("s.pt2"))
    code, out, err = dgad(
        "attack", "--model", "s.pt2", "--suite", "fast", "--limit", "20", "--json", "--quiet", "--trust"
    )
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    assert document["model"]["format"] == "torch-export"
    assert min(row["robust_accuracy"] for row in document["attacks"]) < document["clean"]["accuracy"]


def test_the_tolerance_of_each_format() -> None:
    """Only formats that round may answer differently."""
    held = {name: row.tolerance for name, row in EXPORTERS.items()}
    assert {name for name, tolerance in held.items() if tolerance == EXACT} == {"onnx", "torchscript", "torch-export"}
    assert all(0.9 <= min(each.agreement, each.survival) <= 1 for each in held.values())
