"""The float32 file of an INT8 one, found by what records say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from shared import artifact, randomise_batch_norm

from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.weights import save_weights
from dgad_tk.common import sha256_file
from dgad_tk.models import build_model
from exporters.formats import read_record
from exporters.onnx_write.float32 import save_onnx
from exporters.onnx_write.int8 import Int8, save_onnx_int8
from exporters.siblings import float32_of


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    return randomise_batch_norm(build_model("resnet8", in_channels=1, classes=10)).eval()


def _int8(net: torch.nn.Module, record: Artifact, path: Path) -> Artifact:
    images = np.random.default_rng(0).random((16, 1, 8, 8), dtype=np.float32)
    save_onnx_int8(net, record, path, images=images, int8=Int8(16))
    found = read_record(path)
    assert found is not None
    assert found.precision == "int8"
    return found


def test_the_file_with_the_same_source_is_found_whatever_its_name(net: torch.nn.Module, tmp_path: Path) -> None:
    ours, theirs = artifact(source_sha256="5a" * 32), artifact(source_sha256="77" * 32)
    record = _int8(net, ours, tmp_path / "student.int8.onnx")
    save_onnx(net, theirs, tmp_path / "student.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"no graph")
    (tmp_path / "folder.onnx").mkdir()
    assert float32_of(tmp_path / "student.int8.onnx", record) is None
    save_onnx(net, ours, tmp_path / "zebra.onnx")
    assert float32_of(tmp_path / "student.int8.onnx", record) == tmp_path / "zebra.onnx"


def test_the_weights_that_it_was_made_from_are_found(net: torch.nn.Module, tmp_path: Path) -> None:
    save_weights(tmp_path / "other.safetensors", net, artifact(method="standard"))
    save_weights(tmp_path / "best.safetensors", net, artifact())
    made_from = artifact(source_sha256=sha256_file(tmp_path / "best.safetensors"))
    record = _int8(net, made_from, tmp_path / "student.int8.onnx")
    assert float32_of(tmp_path / "student.int8.onnx", record) == tmp_path / "best.safetensors"


def test_none_is_looked_for_by_float32_files_and_files_without_a_source(net: torch.nn.Module, tmp_path: Path) -> None:
    record = artifact(source_sha256="5a" * 32)
    for name in ("a.onnx", "b.onnx"):
        save_onnx(net, record, tmp_path / name)
    assert float32_of(tmp_path / "a.onnx", record) is None
    assert float32_of(tmp_path / "a.onnx", artifact(precision="int8")) is None
    assert float32_of(tmp_path / "a.onnx", None) is None
