"""Broken and hostile files: a UserError of one line each, nothing run, memory bounded."""

import json
import logging
import os
import pickle
import random
import subprocess
import sys
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

import hostile
import numpy as np
import onnx
import pytest
import torch
from hostile import external, helper, model, with_tensor
from onnx import TensorProto
from shared import artifact

from cli import app
from dgad_tk.common import UserError
from exporters.bench.describe import describe
from exporters.export import export
from exporters.formats import load, read_record
from exporters.onnx_read.read import read_onnx, read_onnx_record
from exporters.onnx_twin import to_torch
from exporters.torch_files.archive import check_program, read_archived_record

node = helper.make_node
RELU = [node("Relu", ["f"], ["y"])]


def refused(path: Path, content: bytes | onnx.ModelProto, message: str, *, trust: bool = False) -> None:
    """Opening the file says one line and a hint."""
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(UserError) as caught:
        load(path, trust=trust)
    assert message in caught.value.message, caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500
    assert caught.value.hint


def recorded(record: str, shape: list[Any]) -> onnx.ModelProto:
    """A classifier of three classes with `record` as its metadata."""
    steps = [node("GlobalAveragePool", ["x"], ["p"]), node("Flatten", ["p"], ["y"])]
    proto = model(steps, inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)])
    proto.metadata_props.add(key="dgad", value=record)
    return proto


def lying(**fields: Any) -> onnx.ModelProto:
    record = artifact(shape=(3, 8, 8)).model_copy(update={"classes": ["a", "b", "c"]} | fields)
    return recorded(record.to_json(), ["n", 3, "h", "w"])


GRAPHS: dict[str, tuple[bytes | onnx.ModelProto, str]] = {
    "empty": (b"", "is an empty file, not an ONNX model"),
    "text": (b"hello, world" * 50, "cannot be decoded"),
    "zeros": (bytes(10_000), "is a file of zeros, not an ONNX model"),
    "too many numbers": (with_tensor(dims=[10**8, 10**7]), "needs 4,000,000,000,000,000 bytes"),
    "negative size": (with_tensor(dims=[-192, -10]), "negative size"),
    "other size": (with_tensor(dims=[192, 11]), "needs 8,448 bytes, has 7,680"),
    "unknown type": (with_tensor(data_type=99), "unknown type"),
    "cycle": (
        model([node("Add", ["f", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]),
        "not acyclic",
    ),
    "one name twice": (
        model([node("Relu", ["f"], ["a"]), node("Abs", ["f"], ["a"]), node("Relu", ["a"], ["y"])]),
        "Duplicate definition of name (a)",
    ),
    "unknown domain": (model([node("Evil", ["f"], ["y"], domain="own")], domains=("own",)), "own:Evil"),
    "unknown operator": (model([node("Evil", ["f"], ["y"])]), "No Op registered for Evil"),
    "future IR": (model(RELU, ir=99), "model IR version: 99"),
    "future opset": (model(RELU, opset=99), "ONNX Runtime cannot load"),
    "no opset": (model(RELU, opset=0), "domain_version of 0"),
    "nested a thousand times": (hostile.nested(1000), "cannot be decoded"),
    "many nodes": (hostile.many_nodes(150_000), "more than 100,000 nodes"),
    "functions that double": (hostile.calling(40, 2), "more than 100,000 nodes"),
    "function that calls itself": (hostile.calling(3, 1, recursive=True), "calls itself"),
    "functions in a long chain": (hostile.calling(200, 1), "functions call each other"),
    "strings": (model(RELU, inputs=[helper.make_tensor_value_info("x", TensorProto.STRING, hostile.IMAGE)]), "string"),
    "sequence": (
        model(RELU, inputs=[helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)]),
        "seq(tensor(float))",
    ),
    "huge image": (
        model(RELU, inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 10**6, 10**6])]),
        "would take 11,175.9 GB",
    ),
    "record is no JSON": (recorded("hello", hostile.IMAGE), "metadata record is damaged"),
    "record is deep": (recorded("[" * 100_000, hostile.IMAGE), "metadata record is damaged"),
    "record is huge": (recorded('"' + "x" * 2**21 + '"', hostile.IMAGE), "over 1 MB"),
    "record lies about classes": (lying(classes=["a"]), "names 1 classes"),
    "record of a huge image": (lying(input_shape=(3, 10**6, 10**6)), "no image has the shape"),
    "record of a negative image": (lying(input_shape=(-3, 8, 8)), "no image has the shape"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_onnx_files(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "model.onnx", *GRAPHS[name])


def test_what_is_refused_above_is_fine_in_moderation(tmp_path: Path) -> None:
    for proto in (hostile.weights(), hostile.calling(3, 2), lying()):
        (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
        assert load(tmp_path / "model.onnx").classes in (3, 10, 192)


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (external("../outside.bin"), "outside the model's folder"),
        (external("/etc/hostname"), "outside the model's folder"),
        (external("link.bin"), "outside the model's folder"),
        (external(""), "outside the model's folder"),
        (external("gone.bin"), "is missing"),
        (external("."), "is missing"),
        (external("a\0b"), "names no file"),
        (external("x" * 5000), "names no file"),
        (external("whole.bin", offset=7000), "is given 680"),
        (external("whole.bin", offset=-1), "non-negative"),
        (external("whole.bin", length=10**12), "beyond the end"),
        (external("short.bin"), "is given 100"),
    ],
)
def test_external_data(proto: onnx.ModelProto, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(7680))
    (folder / "whole.bin").write_bytes(bytes(7680))
    (folder / "short.bin").write_bytes(bytes(100))
    (folder / "link.bin").symlink_to("../outside.bin")
    refused(folder / "model.onnx", proto, message)
    (folder / "model.onnx").write_bytes(external("whole.bin").SerializeToString())
    assert load(folder / "model.onnx").classes == 10


def test_one_piece_of_external_data_many_times(tmp_path: Path) -> None:
    proto = external("whole.bin")
    for index in range(20):
        proto.graph.initializer.add().CopyFrom(proto.graph.initializer[0])
        proto.graph.initializer[-1].name = f"w{index}"
    (tmp_path / "whole.bin").write_bytes(bytes(7680))
    refused(tmp_path / "model.onnx", proto, "external data come to")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "endless.onnx").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "endless"):
        for read in (load, read_onnx, read_onnx_record):
            with pytest.raises(UserError, match="not a file"):
                read(tmp_path / f"{name}.onnx")


def test_a_file_beyond_protobuf_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(3 * 2**30)  # sparse
    with pytest.raises(UserError, match="more than 2 GB"):
        load(tmp_path / "large.onnx")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(hostile.weights().SerializeToString())

    def denied(*args: object, **kwargs: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")  # root, as which tests may run, may read anything

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match="Permission denied"):
        load(tmp_path / "model.onnx")


def test_cut_and_flipped_files_never_crash(tmp_path: Path) -> None:
    content, path = hostile.weights().SerializeToString(), tmp_path / "model.onnx"
    draw = random.Random(0)
    damaged = [content[: len(content) * part // 12] for part in range(1, 12)]
    for _ in range(150):
        flipped = bytearray(content)
        start = draw.choice([0, len(content) - 120])  # the weights between may have any value
        flipped[start + draw.randrange(120)] ^= 1 << draw.randrange(8)
        damaged.append(bytes(flipped))
    refusals = 0
    for each in damaged:
        path.write_bytes(each)
        try:
            load(path)
        except UserError:
            refusals += 1
    assert 50 < refusals < len(damaged)  # a flipped bit of a name does no harm


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (10 * 2**30, 10 * 2**30))
import onnx
from dgad_tk.common import UserError
from exporters.formats import load
from exporters.onnx_twin import to_torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    for open_ in (load, lambda path: to_torch(onnx.load(path))):
        try:
            open_(path)
            print(path.stem, "was opened")
        except UserError:
            pass
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
print("fine" if grown < 1500 else f"took {grown:.0f} MB")
"""


def test_graphs_that_ask_for_terabytes_take_no_memory(tmp_path: Path) -> None:
    """By ONNX Runtime and by the twin's own folding; in a process that may not grow, so that a failure is one."""
    for name, proto in hostile.large_values().items():
        (tmp_path / f"{name}.onnx").write_bytes(proto.SerializeToString())
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert (ran.returncode, ran.stdout) == (0, "fine\n"), ran.stderr[-2000:]


@pytest.mark.parametrize("hidden", ["Expand", "outer sum", "computed size"])
def test_the_twin_folds_no_terabytes(hidden: str) -> None:
    with pytest.raises(UserError, match="would fold a constant"):
        to_torch(hostile.large_values()[hidden])


@pytest.fixture(scope="module")
def quiet() -> Any:
    """PyTorch logs what it cannot read."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def opens(path: Path) -> None:
    """What a trusting program does with a .pt2."""
    try:
        torch.export.load(str(path)).module()(torch.zeros(4, 3, 8, 8))
    except Exception:  # noqa: BLE001 - what it raises, after it ran what it ran, is PyTorch's affair
        return


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hidden", hostile.doctored(Path("marker")))
def test_doctored_pt2(hidden: str, tmp_path: Path, quiet: None) -> None:
    """PyTorch runs what is inside; `load` does not, unless it is told to trust the file."""
    marker, path = tmp_path / "marker", tmp_path / "model.pt2"
    path.write_bytes(hostile.doctored(marker)[hidden])
    assert read_record(path) is None
    with pytest.raises(UserError, match="is a program: loading such a file can run any code of its author") as caught:
        load(path)
    assert "--trust" in caught.value.hint
    assert ".onnx and .safetensors" in caught.value.hint
    assert not marker.exists()
    opens(path)
    assert marker.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_programs_open_with_trust_alone(suffix: str, weights: Path, tmp_path: Path) -> None:
    """Our own too: whoever made a file, its record does not vouch for it."""
    path = export(weights, {".pt": "torchscript", ".pt2": "torch-export"}[suffix], tmp_path / f"student{suffix}").path
    record = read_record(path)
    assert record is not None
    assert record.model == "resnet8"
    for opener in (load, describe):
        with pytest.raises(UserError, match="is a program"):
            opener(path)
        opener(path, trust=True)


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
@pytest.mark.parametrize(
    "command",
    [
        ["inspect"],
        ["bench"],
        ["attack", "--dataset", "digits", "--model"],
        ["attack", "--model", "s.safetensors", "--attack", "transfer:fgsm", "--surrogate"],
        ["train", "--method", "adaad", "--student", "resnet8", "--out", "run", "--teacher"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_every_command_asks_for_trust(
    command: list[str],
    suffix: str,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    weights.rename("s.safetensors")
    with zipfile.ZipFile(f"m{suffix}", "w") as archive:
        for name in ("constants.pkl", "code/a.py") if suffix == ".pt" else ("archive_format",):
            archive.writestr(f"m/{name}", b"x")
    assert app.run([*command, f"m{suffix}"]) == 2
    said = capsys.readouterr().err
    assert f"error: 'm{suffix}' is a program" in said
    assert "--trust" in said
    assert not Path("run").exists()
    assert app.run([*command, f"m{suffix}", "--trust"]) == 2
    said = capsys.readouterr().err  # it is none, and PyTorch finds that out
    assert "is a program" not in said
    assert f"m{suffix}" in said
    assert "Traceback" not in said


NUMBERS, LONG = BytesIO(), pickle.dumps([1])
np.savez(NUMBERS, a=np.zeros(3))
MISTAKEN: dict[str, tuple[str, bytes, str]] = {
    "a pickle": (".pt2", LONG, "it is a pickle"),
    "a pickle as TorchScript": (".pt", LONG, "it is a pickle"),
    "weights": (".pt2", hostile.saved({"w": torch.zeros(2)}), "plain weights"),
    "weights as TorchScript": (".pt", hostile.saved({"w": torch.zeros(2)}), "plain weights or a pickled module"),
    "nothing": (".pt2", b"", "is an empty file, not a torch.export file"),
    "nothing as TorchScript": (".pt", b"", "is an empty file, not a TorchScript file"),
    "half a file": (".pt2", hostile.plain_pt2()[:4000], "it is cut short"),
    "another kind": (".pt", hostile.plain_pt2(), "it is a torch.export file: name it .pt2"),
    "numbers": (".pt", NUMBERS.getvalue(), "some other zip archive"),
    "the end of an archive": (".pt", b"PK\5\6" + bytes(18), "is not a TorchScript file"),
}


@pytest.mark.parametrize("what", MISTAKEN)
@pytest.mark.parametrize("trust", [False, True])
def test_archives_that_are_something_else(what: str, trust: bool, tmp_path: Path) -> None:
    """It is said before anybody is asked for trust, and before anything is opened."""
    suffix, content, message = MISTAKEN[what]
    refused(tmp_path / f"model{suffix}", content, message, trust=trust)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_damaged_archive_never_crashes(tmp_path: Path) -> None:
    """Bytes are changed where an archive says what it holds: it is judged, and its record read, before it is opened."""
    content, path, draw = BytesIO(), tmp_path / "model.pt2", random.Random(0)
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/archive_format", b"pt2")
        archive.writestr("m/extra/dgad.json", b'{"a": 1}' * 30)
    refusals = 0
    for _ in range(2000):
        damaged = bytearray(content.getvalue())
        for _ in range(draw.choice([1, 1, 2, 4])):
            damaged[draw.randrange(len(damaged))] = draw.choice([0, 255, draw.randrange(256)])
        path.write_bytes(damaged)
        for read in (read_archived_record, partial(check_program, trust=True)):
            try:
                read(path)
            except UserError:
                refusals += 1
    assert 200 < refusals < 3000


def test_safetensors_that_lie(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for content in (
        hostile.safetensors({"a": entry}, bytes(8), length=2**60),
        hostile.safetensors({"a": entry | {"shape": [10**15]}}, bytes(8)),
        hostile.safetensors({"a": entry | {"dtype": "F99"}}, bytes(8)),
        hostile.safetensors({"a": entry | {"data_offsets": [0, 10**12]}}, bytes(8)),
        hostile.safetensors({"a": entry}, bytes(8)),
    ):
        refused(tmp_path / "model.safetensors", content, "model.safetensors")


@pytest.mark.parametrize("command", [["inspect"], ["attack", "--limit", "10", "--model"]])
def test_the_command_line_says_it_in_two_lines(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "marker"
    (tmp_path / "a.onnx").write_bytes(hostile.large_values()["Expand"].SerializeToString())
    (tmp_path / "b.onnx").write_bytes(external("../secret").SerializeToString())
    (tmp_path / "c.pt2").write_bytes(hostile.doctored(marker)["sample inputs"])
    (tmp_path / "d.pt").write_bytes(pickle.dumps(hostile.Command(marker)))
    for name in ("a.onnx", "b.onnx", "c.pt2", "d.pt"):
        assert app.run([*command, name]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert [line.partition(":")[0] for line in err.splitlines()][-2:] == ["error", "hint"]
        assert "Traceback" not in err
    assert not marker.exists()


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("encrypted", [False, True])
def test_a_record_in_a_damaged_archive(how: int, encrypted: bool, tmp_path: Path) -> None:
    """It is read before the archive is judged, to find the images of `--dataset`."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("m/extra/dgad.json", json.dumps(list(range(100))))
    content = bytearray(path.read_bytes())
    begin = content.index(b"dgad.json") + len(b"dgad.json")
    content[begin + 4 : begin + 16] = bytes([255] * 12)
    content[content.index(b"PK\1\2") + 8] |= encrypted
    path.write_bytes(content)
    assert read_record(path) is None
    with pytest.raises(UserError, match="is not a TorchScript file"):
        load(path, trust=True)


def test_an_export_replaces_no_hostile_file(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {"m.onnx": b"hello", "m.pt": pickle.dumps(hostile.Command(tmp_path / "marker"))}.items():
        (tmp_path / name).write_bytes(content)
        kind = "onnx" if name.endswith("onnx") else "torchscript"
        assert app.run(["export", str(weights), "--format", kind, "--output", name]) == 2
        assert "was not written by dgad" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == content
    assert not (tmp_path / "marker").exists()
