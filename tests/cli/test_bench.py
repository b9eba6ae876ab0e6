"""`dgad bench` as a user meets it."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from shared import Run, Victim, refused, runner

from dgad_tk.artifacts.record import KEY, Artifact
from dgad_tk.artifacts.weights import load_model
from dgad_tk.common import UserError
from exporters.torch_files.torchscript import save_torchscript

QUICK = ["--threads", "1", "--seconds", "0.05"]


@pytest.fixture
def dgad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `dgad bench` in an empty folder; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    return runner(capsys, "bench")


def fixed(path: Path) -> Path:
    """A graph for exactly three images."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def student_onnx(model: torch.nn.Module, record: Artifact, path: Path) -> None:
    """As `save_onnx`, by the older exporter, which takes a tenth of the time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example, axes = torch.zeros(2, *record.input_shape), {"x": {0: "N"}}
        torch.onnx.export(model, (example,), str(path), dynamo=False, input_names=["x"], dynamic_axes=axes)
    proto = onnx.load(path)
    proto.metadata_props.add(key=KEY, value=record.to_json())
    onnx.save(proto, path)


def test_one_student_in_two_formats_with_robustness(dgad: Run, weights: Path, tmp_path: Path) -> None:
    model, record = load_model(weights)
    student_onnx(model, record, tmp_path / "student.onnx")
    save_torchscript(model, record, tmp_path / "student.pt")
    files, limit = ["student.onnx", "student.pt"], 16
    options = [
        "--trust",
        "--batch",
        "4,1",
        "--robust",
        "--limit",
        limit,
        "--output",
        "out/bench.json",
        "--json",
        "--quiet",
    ]
    code, out, err = dgad(*files, *options, *QUICK)
    assert code == 0, err
    document = json.loads(out)
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == document
    assert document["schema"] == "dgad/bench/1"
    assert document["command"].startswith("dgad bench student.onnx")
    assert document["dataset"] == {"name": "digits", "split": "test", "n": limit}
    assert document["threat"] == {"norm": "linf", "eps": 0.15}
    assert document["environment"]["cores"] >= 1
    assert [file["path"] for file in document["files"]] == files
    assert [file["format"] for file in document["files"]] == ["onnx", "torchscript"]
    for file in document["files"]:
        assert file["bytes"] == (tmp_path / file["path"]).stat().st_size
        assert file["sample"] == [1, 8, 8]
        assert file["multiply_adds"] == document["files"][0]["multiply_adds"] > 0
        assert file["weights"] == "float32"
        assert [(each["threads"], each["batch"]) for each in file["measurements"]] == [(1, 1), (1, 4)]
        robust = file["robust"]
        assert (robust["status"], robust["steps"]) == ("done", 10)
        assert 0 <= robust["robust_accuracy"] <= robust["clean_accuracy"] <= 1
        assert robust["ci95"][0] <= robust["robust_accuracy"] <= robust["ci95"][1]
    of_onnx, of_script = (file["robust"]["clean_accuracy"] for file in document["files"])
    assert of_onnx == of_script


def test_the_table_leaves_out_what_a_fixed_batch_cannot(dgad: Run, tmp_path: Path) -> None:
    code, out, err = dgad(fixed(tmp_path / "three.onnx").name, "--batch", "1,2", *QUICK)
    assert code == 0, err
    header, *rows = out.splitlines()
    assert header.split()[:2] == ["file", "weights"]
    assert {"p50", "p95", "images/s", "mult-adds", "peak", "runs"} <= set(header.split())
    assert rows[0].split()[-8:] == ["1", "1", *["-"] * 6]  # threads, batch, and nothing measured
    assert rows[1].split()[-8:] == ["1", "2", *["-"] * 6]
    assert rows[2].split()[:2] == ["1", "3"]
    assert "1.00" in rows[2].split()  # the measure of itself
    assert "takes batches of exactly 3" in out


def test_a_quota_is_said(dgad: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgad_tk.cores.allowed_cores", lambda: 16)
    file = fixed(tmp_path / "three.onnx").name
    for quota, said in ((None, False), (1.5, True), (16.0, False)):
        monkeypatch.setattr("dgad_tk.quota.core_quota", lambda quota=quota: quota)
        code, out, err = dgad(file, *QUICK)
        assert code == 0, err
        assert ("a quota gives this process the time of 1.5 of 16 cores" in out) == said
    code, out, err = dgad(file, *QUICK, "--json")
    environment = json.loads(out)["environment"]
    assert (environment["cores"], environment["quota"]) == (16, 16.0)


def test_the_survival_table(dgad: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is refused has its row and its reason, and costs the other one nothing."""
    from evaluators.engine import evaluate

    evaluated, right = [], evaluate.evaluate

    def once(predictor: Any, *arguments: Any, **options: Any) -> Any:
        evaluated.append(predictor.path.name)
        if predictor.path.name == "refused.safetensors":
            raise UserError("its gradients are another function's")
        return right(predictor, *arguments, **options)

    monkeypatch.setattr(evaluate, "evaluate", once)
    for name in ("attacked.safetensors", "refused.safetensors"):
        shutil.copy(weights, tmp_path / name)
    code, out, err = dgad(
        "attacked.safetensors", "refused.safetensors", "--robust", "--limit", 16, "--batch", "1,2", "--quiet", *QUICK
    )
    assert code == 0, err
    assert evaluated == ["attacked.safetensors", "refused.safetensors"]
    table = out[out.index("\n\n") :].splitlines()[2:]
    assert " ".join(table[0].split()) == "file size p50 ms images/s clean PGD-10 0.15 95 % interval"
    assert table[1].split()[0] == "attacked.safetensors"
    assert table[1].count("%") == 4
    assert table[2].split()[-3:] == ["refused", "refused", "-"]
    assert "PGD on 16 test images of digits: through each file's own gradients" in out
    assert out.splitlines()[-1] == "refused.safetensors: refused: its gradients are another function's"


class _Bytes(torch.nn.Module):
    """A network that takes pixels as 0 to 255."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(x / 255)
        return logits


def test_a_file_from_elsewhere_gets_its_pixels(dgad: Run, tmp_path: Path, victim: Victim) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(_Bytes(victim[0]), torch.zeros(2, 1, 8, 8)).save(str(tmp_path / "bytes.pt"))
    clean = {}
    for given in ([], ["--input-range", "0-255"]):
        options = ["--trust", "--dataset", "digits", "--robust", "--limit", 64, "--batch", "1", "--json", "--quiet"]
        code, out, err = dgad("bytes.pt", *options, *given, *QUICK)
        assert code == 0, err
        clean[len(given)] = json.loads(out)["files"][0]["robust"]["clean_accuracy"]
    assert clean[0] < 0.3 < 0.6 < clean[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.onnx"], "no such file"),
        (["there.txt"], "suffix '.txt'"),
        (["there.onnx"], "not a valid ONNX model"),
        (["there.onnx", "--batch", "0"], "--batch must be whole numbers from 1, got '0'"),
        (["there.onnx", "--batch", "1,many"], "--batch must be whole numbers"),
        (["there.onnx", "--threads", "0"], "--threads must be whole numbers from 1, got '0'"),
        (["there.onnx", "--threads", ""], "--threads must be whole numbers"),
        (["there.onnx", "--threads", "1025"], "--threads must be at most 1,024, got 1,025"),
        (["there.onnx", "--mean", "0.5"], "are for --robust"),
        (["there.onnx", "--robust", "--mean", "half"], "--mean must be numbers"),
        (["there.onnx", "--provider", "tpu"], "unknown provider 'tpu'"),
        (["there.onnx", "--seconds", "0"], "--seconds must be"),
        (["there.onnx", "--seconds", "nan"], "--seconds must be"),
        (["there.onnx", "--robust", "--eps", "0"], "--eps must be above 0"),
        (["there.onnx", "--output", "."], "is a folder"),
        (["there.onnx", "--output", "there.txt"], "was not written by `dgad bench`"),
    ],
)
def test_bad_input(dgad: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    for name in ("there.onnx", "there.txt"):
        (tmp_path / name).write_text("no model")
    refused(dgad(*arguments), message)


def test_a_provider_that_is_not_there(dgad: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    refused(dgad(fixed(tmp_path / "three.onnx"), "--provider", "cuda", "--batch", "1"), "CUDAExecutionProvider")
