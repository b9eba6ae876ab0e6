"""SVHN against scipy, which torchvision reads it with."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from dataset_files import Arrays, svhn_arrays, write_svhn
from scipy.io import savemat

from dgad_tk.common import UserError
from dgad_tk.data import cache, load_dataset
from dgad_tk.data.sources import svhn


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("n", [1, 40, 41])
def test_equals_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, n: int) -> None:
    from torchvision.datasets import SVHN

    class Unchecked(SVHN):  # type: ignore[misc]
        split_list = {part: [name, name, None] for part, name in svhn.FILES.items()}  # noqa: RUF012

    monkeypatch.setattr(cache, "BLOCK", 16)
    write_svhn(tmp_path, packed=packed, n=n + 1)
    dataset = load_dataset("svhn", data_dir=tmp_path)
    train, test = (Unchecked(tmp_path, split=part) for part in ("train", "test"))
    np.testing.assert_array_equal(dataset.train.base, train.data)
    np.testing.assert_array_equal(dataset.test.base, test.data)
    np.testing.assert_array_equal(dataset.test.labels, test.labels[dataset.test.index])
    np.testing.assert_array_equal(dataset.train.labels, train.labels[dataset.train.index])
    assert dataset.classes == [str(digit) for digit in range(10)]
    assert not dataset.spec.augmentation.flip


@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "u8", "f4", "f8"])
@pytest.mark.parametrize("packed", [True, False])
def test_however_labels_are_stored(tmp_path: Path, kind: str, packed: bool) -> None:
    plain = load_dataset("svhn", data_dir=write_svhn(tmp_path / "plain"))
    labels = svhn_arrays(0, 41)["y"].astype(kind)
    other = load_dataset("svhn", data_dir=write_svhn(tmp_path / "other", packed=packed, y=labels.T, note="hello"))
    assert other.sha256 == plain.sha256


def test_ten_means_zero(tmp_path: Path) -> None:
    dataset = load_dataset("svhn", data_dir=write_svhn(tmp_path, n=20, y=np.array([10, 1, 9, 10] * 5)))
    labels = np.concatenate([dataset.train.labels, dataset.val.labels])
    index = np.concatenate([dataset.train.index, dataset.val.index])
    assert labels[np.argsort(index)].tolist() == [0, 1, 9, 0] * 5


def test_variables_in_another_order(tmp_path: Path) -> None:
    expected = load_dataset("svhn", data_dir=write_svhn(tmp_path / "plain")).sha256
    root = write_svhn(tmp_path / "other")
    found = svhn_arrays(0, 41)
    savemat(root / "train_32x32.mat", {"note": "x" * 3000, "y": found["y"], "X": found["X"]}, do_compression=True)
    assert load_dataset("svhn", data_dir=root).sha256 == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": np.zeros((41, 1), np.uint8)}, "labels are not all from 1 to 10"),
        ({"y": np.full((41, 1), 11, np.uint8)}, "labels are not all from 1 to 10"),
        ({"y": np.full((41, 1), np.nan)}, "labels are not all from 1 to 10"),
        ({"y": np.full((40, 1), 1, np.uint8)}, r"\(40, 1\) labels for 41 images"),
        ({"y": "text"}, "no array of numbers y"),
        ({"X": np.array([[1], [np.zeros((2, 2))]], dtype=object)}, "no array of numbers X"),
        ({"X": {"a": {"b": 1}}}, "not uint8"),
        ({"X": np.zeros((32, 32, 3, 41)) + 0.5}, "X is float64"),
        ({"X": np.zeros((32, 32, 3, 41)) + 1j}, "X is float64"),
        ({"X": np.zeros((32, 32, 1, 41), np.uint8)}, "not uint8"),
        ({"X": np.zeros((41, 3, 32, 32), np.uint8)}, "not uint8"),
        ({"X": np.zeros((32, 32, 3, 41), np.uint16)}, "not uint8"),
        ({"X": np.zeros((32, 32, 3, 0), np.uint8), "y": np.zeros((0, 1))}, "labels for 0 images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("packed", [True, False])
def test_other_content_is_named(tmp_path: Path, changed: Arrays, message: str, packed: bool) -> None:
    write_svhn(tmp_path, packed=packed, **changed)
    with pytest.raises(UserError, match=f"train_32x32.mat cannot be read as SVHN: .*{message}") as error:
        load_dataset("svhn", data_dir=tmp_path)
    assert error.value.hint
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("how", ["half", "by one", "header", "empty", "no mat", "hdf5", "no X", "no y"])
def test_damage_is_named(tmp_path: Path, how: str, packed: bool) -> None:
    write_svhn(tmp_path, packed=packed)
    path = tmp_path / "test_32x32.mat"
    whole, found = path.read_bytes(), svhn_arrays(0, 5)
    match how:
        case "no X" | "no y":
            savemat(path, {name: value for name, value in found.items() if name not in how}, do_compression=packed)
        case _:
            path.write_bytes({
                "half": whole[: len(whole) // 2],
                "by one": whole[:-1],
                "header": whole[:100],
                "empty": b"",
                "no mat": b"<html>not found</html>" * 20,
                "hdf5": whole[:124] + b"\x00\x02IM" + whole[128:],
            }[how])  # fmt: skip
    with pytest.raises(UserError, match="test_32x32.mat cannot be read as SVHN") as error:
        load_dataset("svhn", data_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Of a compressed file, as the official ones are: zlib has a checksum."""
    write_svhn(tmp_path)
    path = tmp_path / "train_32x32.mat"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(bytes(whole))
    with pytest.raises(UserError, match="train_32x32.mat cannot be read as SVHN"):
        load_dataset("svhn", data_dir=tmp_path)


def test_random_damage_is_a_user_error_or_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_svhn(tmp_path, packed=False, n=20)
    path = tmp_path / "train_32x32.mat"
    whole = path.read_bytes()
    at = [*range(124, 200), *range(len(whole) - 80, len(whole))]  # what is no pixel
    for _ in range(300):
        damaged = bytearray(whole)
        for byte in rng.choice(at, 2):
            damaged[byte] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        with suppress(UserError):
            for piece in svhn._read(path):
                assert piece.images.shape == (len(piece.labels), 3, 32, 32)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svhn, "LARGEST_BYTES", 2**20)
    write_svhn(tmp_path, n=1000, X=np.zeros((32, 32, 3, 1000), np.uint8))
    assert (tmp_path / "train_32x32.mat").stat().st_size < 2**14
    with pytest.raises(UserError, match="train_32x32.mat cannot be read as SVHN"):
        load_dataset("svhn", data_dir=tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no SVHN in"):
        load_dataset("svhn", data_dir=tmp_path)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_dataset("svhn", data_dir=tmp_path / "nowhere")
    (write_svhn(tmp_path) / "test_32x32.mat").unlink()
    with pytest.raises(UserError, match="SVHN without test_32x32.mat") as error:
        load_dataset("svhn", data_dir=tmp_path)
    assert "--download" in error.value.hint
