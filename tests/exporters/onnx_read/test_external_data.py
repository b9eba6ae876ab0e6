"""External data: opened where ONNX Runtime opens it, by where it really lies and not by the links on the way."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from small_graphs import images, linear, runs, weights

from dgad_tk.common import UserError
from exporters.bench.describe import describe
from exporters.formats import load
from exporters.onnx_read.read import read_onnx


def outside(location: str, **more: int) -> bytes:
    """The linear model with its weights in another file."""
    proto = linear()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return proto.SerializeToString()


def write(root: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def hub(root: Path) -> Path:
    """A cache of blobs: both files are links into another folder, under other names."""
    write(root, blobs__a=outside("b"), blobs__b=weights().tobytes())
    (root / "snapshots").mkdir()
    (root / "snapshots/model.onnx").symlink_to("../blobs/a")
    (root / "snapshots/b").symlink_to("../blobs/b")
    return root / "snapshots/model.onnx"


def volume(root: Path) -> Path:
    """A mounted volume: links to a link to a folder."""
    write(root, v1__model=outside("b"), v1__b=weights().tobytes())
    (root / "..data").symlink_to("v1")
    (root / "model.onnx").symlink_to("..data/model")
    (root / "b").symlink_to("..data/b")
    return root / "model.onnx"


def same_folder(root: Path) -> Path:
    write(root, model=outside("b"), c=weights().tobytes())
    (root / "model").rename(root / "model.onnx")
    (root / "b").symlink_to("c")
    return root / "model.onnx"


def hard(root: Path) -> Path:
    write(root, first=outside("b"), c=weights().tobytes())
    os.link(root / "first", root / "model.onnx")
    os.link(root / "c", root / "b")
    return root / "model.onnx"


def linked_folder(root: Path) -> Path:
    write(root, real__model=outside("sub/b"), real__sub__b=weights().tobytes())
    (root / "front").symlink_to("real")
    (root / "real/model").rename(root / "real/model.onnx")
    return root / "front/model.onnx"


def there_and_back(root: Path) -> Path:
    """A path that leaves the folder on the way, and ends in it."""
    write(root, real__model=outside("../real/b"), real__b=weights().tobytes())
    (root / "real/model").rename(root / "real/model.onnx")
    return root / "real/model.onnx"


OPENED: list[Callable[[Path], Path]] = [hub, volume, same_folder, hard, linked_folder, there_and_back]


@pytest.mark.parametrize("lay", OPENED)
def test_what_onnx_runtime_opens_is_opened(lay: Callable[[Path], Path], tmp_path: Path) -> None:
    path, x = lay(tmp_path), images()
    predictor = load(path)
    assert predictor.module is not None
    np.testing.assert_array_equal(predictor.predict(x), runs(path, x))
    np.testing.assert_allclose(predictor.module(torch.from_numpy(x)).numpy(), runs(path, x), rtol=1e-4, atol=1e-4)
    assert describe(path).bytes == path.stat().st_size + weights().nbytes


def leading_out(root: Path) -> Path:
    write(root, inner__model=outside("b"), secret=weights().tobytes())
    (root / "inner/model").rename(root / "inner/model.onnx")
    (root / "inner/b").symlink_to("../secret")
    return root / "inner/model.onnx"


def folder_leading_out(root: Path) -> Path:
    write(root, inner__model=outside("sub/b"), secret__b=weights().tobytes())
    (root / "inner/model").rename(root / "inner/model.onnx")
    (root / "inner/sub").symlink_to("../secret")
    return root / "inner/model.onnx"


def upwards(root: Path) -> Path:
    write(root, inner__model=outside("../b"), b=weights().tobytes())
    (root / "inner/model").rename(root / "inner/model.onnx")
    return root / "inner/model.onnx"


def absolute(root: Path) -> Path:
    write(root, inner__b=weights().tobytes(), inner__model=outside(str(root / "inner/b")))
    (root / "inner/model").rename(root / "inner/model.onnx")
    return root / "inner/model.onnx"


def not_beside_the_link(root: Path) -> Path:
    """ONNX Runtime looks for data beside the link alone, and so it is missing."""
    write(root, real__model=outside("b"), real__b=weights().tobytes())
    (root / "front").mkdir()
    (root / "front/model.onnx").symlink_to("../real/model")
    return root / "front/model.onnx"


@pytest.mark.parametrize("lay", [leading_out, folder_leading_out, upwards, absolute, not_beside_the_link])
def test_what_lies_elsewhere_is_refused_for_that(lay: Callable[[Path], Path], tmp_path: Path) -> None:
    path = lay(tmp_path)
    with pytest.raises(Exception, match=r"External data path|Absolute path|does not exist"):
        onnxruntime.InferenceSession(str(path))
    with pytest.raises(UserError) as caught:
        load(path)
    assert ("is missing" if lay is not_beside_the_link else "outside the model's folder") in caught.value.message
    assert "cut short" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(("kept", "more"), [(100, {}), (100, {"length": 3072}), (3072, {"offset": 8})])
def test_a_data_file_that_is_too_short_is_named(kept: int, more: dict[str, int], tmp_path: Path) -> None:
    write(tmp_path, b=weights().tobytes()[:kept])
    (tmp_path / "model.onnx").write_bytes(outside("b", **more))
    with pytest.raises(UserError) as caught:
        load(tmp_path / "model.onnx")
    assert "'b' is shorter than the model says" in caught.value.hint


def test_data_at_an_offset_is_read_from_there(tmp_path: Path) -> None:
    write(tmp_path, b=b"\xff" * 64 + weights().tobytes() + b"\xff" * 8)
    (tmp_path / "model.onnx").write_bytes(outside("b", offset=64, length=3072))
    (tensor,) = read_onnx(tmp_path / "model.onnx").graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), weights())
    assert not tensor.external_data


def test_a_pipe_in_the_place_of_data_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b")
    (tmp_path / "model.onnx").write_bytes(outside("b"))
    with pytest.raises(UserError, match="is missing"):
        load(tmp_path / "model.onnx")


def test_a_link_that_takes_the_place_of_data_between_check_and_use_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, b=weights().tobytes(), secret=weights().tobytes())
    (tmp_path / "model.onnx").write_bytes(outside("b"))
    opened = os.open

    def swapped(path: Path, flags: int, *more: int) -> int:
        (tmp_path / "b").unlink()
        (tmp_path / "b").symlink_to("secret")
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(UserError, match="cannot read the data of"):
        read_onnx(tmp_path / "model.onnx")
