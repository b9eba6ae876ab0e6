"""`dgad attack --attack autoattack-max` on an INT8 file: its siblings, its record, and what a kill leaves."""

import importlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import Child, together
from shared import Run, artifact, refused, runner
from victims import one_convolution

from dgad_tk.common import sha256_file
from dgad_tk.data import load_dataset
from evaluators.attacks import ATTACKS
from evaluators.engine.evaluate import evaluate
from evaluators.plan.rows import plan
from exporters.formats import load
from exporters.onnx_write.float32 import save_onnx
from exporters.onnx_write.int8 import Int8, save_onnx_int8

engine: Any = importlib.import_module("evaluators.engine.evaluate")
QUICK = {"steps": 8, "restarts": 1, "queries": 30}
NAME = "autoattack-max"
STANDARD = ["apgd-ce", "apgd-t", "fab-t", "square"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network in float32 and in INT8, whose records name the same source."""
    folder, net = tmp_path_factory.mktemp("exported"), one_convolution()
    record = artifact(source_sha256="5a" * 32)
    save_onnx(net, record, folder / "student.onnx")
    images = load_dataset("digits").train.take(slice(0, 64)) / np.float32(255)
    save_onnx_int8(net, record, folder / "student.int8.onnx", images=images, int8=Int8(64))
    return folder


@pytest.fixture
def dgad(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def _command(folder: Path, output: Path, *more: object) -> list[str]:
    flags = [f"--set={NAME}.{key}={value}" for key, value in QUICK.items()]
    command = [
        "attack",
        "--model",
        folder / "student.int8.onnx",
        "--attack",
        NAME,
        "--limit",
        16,
        "--eps",
        0.08,
        *flags,
    ]
    return [str(each) for each in (*command, "--output", output, *more)]


def _results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def test_the_float32_file_beside_an_int8_one_is_found_used_and_told(exported: Path, tmp_path: Path, dgad: Run) -> None:
    folder = tmp_path / "files"
    shutil.copytree(exported, folder)
    code, _, err = dgad(*_command(folder, tmp_path / "out"))
    assert code == 0, err
    digest = sha256_file(folder / "student.onnx")
    assert f"sibling student: '{folder / 'student.onnx'}', sha256 {digest[:16]}, found beside it" in err
    found = _results(tmp_path / "out")
    assert any("sibling student" in note for note in found["model"]["notes"])
    stages = [stage["name"] for stage in found["attacks"][0]["stages"]]
    assert stages[:4] == STANDARD
    assert {"apgd-t on student", "apgd-t with student", "apgd-t smooth", "square with student"} <= set(stages)
    verdicts = {item["name"]: item["verdict"] for item in found["checks"]["items"]}
    assert verdicts["quantised"] == "high"

    (folder / "student.onnx").unlink()
    code, _, err = dgad(*_command(folder, tmp_path / "out"))
    assert code == 0, err
    assert "sibling" not in err
    found = _results(tmp_path / "out")
    assert "square with smooth" in [stage["name"] for stage in found["attacks"][0]["stages"]]
    verdicts = {item["name"]: item["verdict"] for item in found["checks"]["items"]}
    assert verdicts["quantised"] == "warn"
    assert len(set((tmp_path / "out" / "units").iterdir())) == 2  # another question, so another unit


def test_siblings_are_refused_where_nothing_uses_them_or_they_do_not_fit(exported: Path, dgad: Run) -> None:
    model, other = exported / "student.int8.onnx", exported / "student.onnx"
    refused(dgad("attack", "--model", model, "--attack", "pgd", "--sibling", other), "no attack that uses one")
    missing = dgad("attack", "--model", model, "--attack", NAME, "--sibling", "none.onnx")
    refused(missing, "no such file: 'none.onnx'")


def test_a_model_is_no_sibling_of_itself(exported: Path, tmp_path: Path, dgad: Run) -> None:
    model = exported / "student.int8.onnx"
    code, _, err = dgad(*_command(exported, tmp_path, "--sibling", model))
    assert code == 0, err
    assert "is the model itself and was left out" in err


def _attack(arguments: list[str], chunk: int) -> int:
    from cli import app

    engine.CHUNK = chunk
    torch.set_num_threads(1)
    return app.run(arguments)


def _record(folder: Path) -> tuple[dict[str, np.ndarray], Any]:
    with np.load(folder / "samples.npz") as arrays:
        return dict(arrays), _timeless(_results(folder))


def _timeless(document: Any) -> Any:
    if isinstance(document, dict):
        return {
            key: _timeless(value) for key, value in document.items() if key not in ("seconds", "created", "command")
        }
    return [_timeless(each) for each in document] if isinstance(document, list) else document


def _assert_same(first: Path, second: Path) -> None:
    (ours, document), (theirs, other) = _record(first), _record(second)
    assert document == other
    for name, values in ours.items():
        assert np.array_equal(values, theirs[name], equal_nan=values.dtype.kind == "f"), name


def test_killed_or_shared_by_two_processes_the_record_is_the_same(exported: Path, tmp_path: Path) -> None:
    whole, cut, shared = (tmp_path / name for name in ("whole", "cut", "shared"))
    begun = time.perf_counter()
    assert Child(_attack, _command(exported, whole, "--quiet"), 8).result() == 0
    seconds, kills = time.perf_counter() - begun, 0
    for share in (0.25, 0.5, 0.5):  # each goes on where the one before was killed
        child = Child(_attack, _command(exported, cut, "--quiet"), 8)
        if child.ends_within(share * seconds):
            break
        child.kill()
        kills += child.outcome()[0] == "killed"
    assert kills > 0
    assert Child(_attack, _command(exported, cut, "--quiet"), 8).result() == 0
    _assert_same(whole, cut)
    both = together(2, _attack, _command(exported, shared, "--quiet"), 8)
    assert [child.result() for child in both] == [0, 0]
    _assert_same(whole, shared)


def test_an_image_has_the_same_outcome_among_others_and_alone(exported: Path) -> None:
    from dataclasses import replace

    int8, other = load(exported / "student.int8.onnx"), load(exported / "student.onnx")
    target = replace(int8, siblings={"fp32": other})
    test = load_dataset("digits").test
    rows = plan([NAME], norm="linf", eps=[0.08], settings={NAME: QUICK})
    whole = evaluate(target, test.subset(12), rows).outcomes[0].unit
    fewer = evaluate(target, test.subset(5), rows, batch_size=3).outcomes[0].unit
    assert whole is not None
    assert fewer is not None
    assert np.array_equal(whole.broken[:5], fewer.broken)
    assert np.array_equal(whole.broken_by[:5], fewer.broken_by)
    assert ATTACKS[NAME].siblings
