"""Files of arrays from strangers: what is read of them, and how much."""

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from dgad_tk.strangers.arrays import read_arrays


def header(shape: str, descr: str = "<i8") -> bytes:
    """The beginning of an .npy file that claims a shape."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.arange(3), **{"b/c": np.ones((2, 2))})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as file:
        file.writestr("odd.npy", b"no array")
    found = read_arrays(tmp_path / "a.npz", {"a", "b/c"}.__contains__, most=1000)
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b/c"].shape == (2, 2)
    assert set(found) == {"a", "b/c"}
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_arrays(tmp_path / "a.npz", {"a"}.__contains__, most=10)
    with pytest.raises(ValueError, match="magic"):
        read_arrays(tmp_path / "a.npz", lambda name: True, most=1000)


def test_every_dtype_and_version_of_ours_is_read(tmp_path: Path) -> None:
    arrays = {
        "bool": np.array([True, False]),
        "text": np.array(["a", "déjà"]),
        "empty": np.zeros((0, 3, 4), np.float32),
        "scalar": np.array(5),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read_arrays(tmp_path / "a.npz", lambda name: True, most=2000)
    assert all(np.array_equal(found[name], values) for name, values in arrays.items())
    buffer = BytesIO()
    np.lib.format.write_array(buffer, np.arange(4), version=(2, 0))
    assert read_arrays(archive(tmp_path / "b.npz", a=buffer.getvalue()), bool, most=1000)["a"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", ["(1000000000000000,)", "(3,)", "(-1,)", "(2, 10**9)", "(9223372036854775807, 8)"])
def test_an_array_is_as_large_as_it_says(tmp_path: Path, shape: str) -> None:
    path = archive(tmp_path / "a.npz", a=header(shape) + bytes(16))
    with pytest.raises(ValueError):
        read_arrays(path, bool, most=1000)


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", a=header("(12500000,)") + bytes(10**8))
    assert path.stat().st_size < 10**6
    with pytest.raises(ValueError, match="more than 1,000,000 bytes"):
        read_arrays(path, bool, most=10**6)
    assert read_arrays(path, {"b"}.__contains__, most=10**6) == {}


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError):
        read_arrays(tmp_path / "a.npz", bool, most=1000)
