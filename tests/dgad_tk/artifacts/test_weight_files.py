"""Files in the place of weights: each is called what it is, and only what is cut short is called so."""

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from shared import Run, runner
from torch import Tensor, nn

from dgad_tk.common import UserError
from dgad_tk.teachers.foreign import SUFFIXES, read_state_dicts
from exporters.torch_files.archive import PROGRAMS, check_program

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567\n"
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>too large to scan</body></html>\n"
IMPOSTORS = {
    "a Git LFS pointer": POINTER,
    "an HTML page": PAGE,
    "an XML document": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "an empty file": b"",
    "a file of zeros": bytes(3000),
    "text that begins 'Entry not found'": b"Entry not found",
    "a tar archive": b"",
    "a gzip archive": gzip.compress(b"weights"),
}


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())
    return buffer.getvalue()


IMPOSTORS["a tar archive"] = tarred()


@pytest.fixture
def dgad(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return runner(capsys)


def refused(answer: tuple[int, str, str], *words: str) -> None:
    code, out, err = answer
    assert (code, out) == (2, ""), err
    assert [line.partition(":")[0] for line in err.splitlines()][-2:] == ["error", "hint"]
    for word in words:
        assert word in err, err
    assert "cut short" not in err


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".pt2"])
@pytest.mark.parametrize("what", IMPOSTORS)
def test_a_teacher_that_is_another_file_is_named(dgad: Run, what: str, suffix: str) -> None:
    Path(f"teacher{suffix}").write_bytes(IMPOSTORS[what])
    refused(
        dgad("train", "--quiet", "--method", "adaad", "--teacher", f"teacher{suffix}", "--out", "run"), f"is {what}"
    )
    assert not Path("run").exists()


COMMANDS = (["attack", "--limit", "10", "--model"], ["inspect"], ["bench"], ["inspect", "--dataset", "digits"])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".safetensors"])
@pytest.mark.parametrize("what", ["a Git LFS pointer", "an HTML page", "an empty file", "a gzip archive"])
def test_a_model_that_is_another_file_is_named(dgad: Run, what: str, suffix: str, command: list[str]) -> None:
    Path(f"model{suffix}").write_bytes(IMPOSTORS[what])
    words = ["no safetensors file"] if (what, suffix) == ("a gzip archive", ".safetensors") else [f"is {what}"]
    refused(dgad(*command, f"model{suffix}"), *words)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("what", ["a Git LFS pointer", "an HTML page", "an empty file"])
def test_weights_to_export_that_are_another_file_are_named(dgad: Run, what: str, suffix: str) -> None:
    Path(f"weights{suffix}").write_bytes(IMPOSTORS[what])
    refused(dgad("export", f"weights{suffix}"), f"is {what}")


def test_a_checkpoint_of_another_project_is_not_exported(dgad: Run) -> None:
    torch.save({"w": torch.ones(2)}, "theirs.pth")
    refused(dgad("export", "theirs.pth"), "only these carry the record of `dgad train`", "give the run folder")


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def archived(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


STATE: dict[str, Tensor] = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict()
ZIPPED, LEGACY, SAFE = saved(STATE), saved(STATE, _use_new_zipfile_serialization=False), save(STATE)
HEADER = 8 + int.from_bytes(SAFE[:8], "little")

CUT = {
    "half an archive": (".pt", ZIPPED[: len(ZIPPED) // 2]),
    "an archive without its end": (".ckpt", ZIPPED[:-22]),
    "half a legacy file": (".pth", LEGACY[: len(LEGACY) // 2]),
    "a legacy file without its end": (".pth", LEGACY[:-3]),
    "a legacy file's head": (".bin", LEGACY[:40]),
    "half a header": (".safetensors", SAFE[: HEADER // 2]),
    "half the tensors": (".safetensors", SAFE[: (HEADER + len(SAFE)) // 2]),
    "the length of a header": (".safetensors", SAFE[:5]),
}


@pytest.mark.parametrize("kind", CUT)
def test_what_is_cut_short_is_called_so(kind: str, tmp_path: Path) -> None:
    suffix, content = CUT[kind]
    (tmp_path / f"t{suffix}").write_bytes(content)
    with pytest.raises(UserError, match="cannot read .* as a teacher: it is cut short.*copy it again"):
        read_state_dicts(tmp_path / f"t{suffix}")


def with_header(header: bytes, content: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + content


class Object:
    """Of a class that only its own project has."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.getenv, ("HOME",)


OTHERWISE = {
    "safetensors under another name": (".bin", SAFE, "it is a safetensors file .name it .safetensors"),
    "a checkpoint named safetensors": (".safetensors", ZIPPED, "zip archive, and no safetensors file .*name it .pt"),
    "a legacy one named safetensors": (".safetensors", LEGACY, "a pickle, and no safetensors file .*name it .pt"),
    "a checkpoint in an archive": (
        ".pt",
        archived(**{"a/b.pth": ZIPPED}),
        "torch.save did not write, of a/b.pth .unpack",
    ),
    "a NumPy archive": (".pt", archived(**{"w.npy": b"\x93NUMPY"}), "torch.save did not write, of w.npy"),
    "a NumPy array": (".pt", b"\x93NUMPY\x01\x00" + bytes(100), "it is a NumPy array"),
    "Keras weights": (".bin", b"\x89HDF\r\n\x1a\n" + bytes(100), "it is an HDF5 file"),
    "an ONNX model": (".pt", b"\x08\x08\x12\x07pytorch\x1a" + bytes(100), "it is no PyTorch checkpoint"),
    "a pickle of protocol 4": (".pt", saved(STATE, pickle_protocol=4), "pickled by protocol 4, which is not read"),
    "a bare pickle of protocol 4": (".pt", pickle.dumps([1.5]), "pickled by protocol 4, which is not read"),
    "a bare pickle": (".pt", pickle.dumps([1.5], protocol=2), "a pickle that torch.save did not write"),
    "NumPy weights": (".pt", saved({"w": np.ones(3)}), "_reconstruct would have to be run .*its arrays as tensors"),
    "an object": (".pt", saved({"w": Object()}), "getenv would have to be run .where you trust the file"),
    "bytes behind the end": (".safetensors", SAFE + b"xx", "2 bytes follow its last tensor"),
    "a header that is no JSON": (".safetensors", with_header(b"{" + b"x" * 40), "its header is damaged"),
    "a header of another encoding": (".safetensors", with_header(b'{"a\xff": 1}'), "its header is damaged"),
    "an absurd length": (".safetensors", b"\xff" * 8 + b"{}", "its first bytes are damaged"),
    "no header": (".safetensors", bytes(8) + b"\1" * 100, "its header is damaged"),
    "a torch.export file": (".pt", archived(**{"m/archive_format": b"pt2"}), "a torch.export file.*name it .pt2"),
    "a TorchScript file": (".pth", archived(**{"m/constants.pkl": b""}), "a TorchScript file, a program of its own"),
}


@pytest.mark.parametrize("kind", OTHERWISE)
def test_what_is_wrong_otherwise_has_its_own_reason(kind: str, tmp_path: Path) -> None:
    suffix, content, message = OTHERWISE[kind]
    (tmp_path / f"t{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_state_dicts(tmp_path / f"t{suffix}")
    assert "cut short" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_damaged_directory_is_not_cut_short(tmp_path: Path) -> None:
    content = bytearray(ZIPPED)
    content[content.index(b"PK\1\2")] ^= 1
    (tmp_path / "t.pt").write_bytes(content)
    with pytest.raises(UserError, match="its archive is damaged: .*copy it again"):
        read_state_dicts(tmp_path / "t.pt")


def test_checkpoints_without_checksums_open(tmp_path: Path) -> None:
    """PyTorch can be told to write none; Python's zip reader would call each member damaged."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "t.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    (found,) = read_state_dicts(tmp_path / "t.pt")
    assert found.tensors.keys() == STATE.keys()


def test_a_pickle_byte_in_the_length_of_a_header(tmp_path: Path) -> None:
    """A header of 640 bytes begins like a pickle of protocol 2."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(0x280)
    content = with_header(header, bytes(4))
    assert content[:2] == b"\x80\x02"
    (tmp_path / "t.safetensors").write_bytes(content)
    assert list(read_state_dicts(tmp_path / "t.safetensors")[0].tensors) == ["w"]
    (tmp_path / "t.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match="cut short: of 4 bytes of tensors 3 are there"):
        read_state_dicts(tmp_path / "t.safetensors")


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (ZIPPED, "plain weights or a pickled module", "only a teacher of `dgad train` is read from weights"),
        (LEGACY, "it is a pickle", "only a teacher of `dgad train` is read from weights"),
        (ZIPPED[:-30], "it is cut short", "copy it again"),
        (gzip.compress(ZIPPED), "it is a gzip archive", "unpack"),
        (b"Entry not found", "it is text that begins 'Entry not found'", "download it again"),
        (archived(**{"m/a.txt": b""}), "some other zip archive", "unpack it"),
    ],
    ids=["weights", "legacy weights", "cut", "gzip", "text", "another archive"],
)
def test_programs_that_are_none(content: bytes, message: str, hint: str, tmp_path: Path) -> None:
    """Each reason has its own hint: a wrong kind and damage are not one."""
    for suffix in PROGRAMS:
        path = tmp_path / f"model{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            check_program(path, trust=True)
        assert hint in caught.value.hint
