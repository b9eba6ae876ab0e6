"""CIFAR-10 and CIFAR-100 against torchvision's own reading of the same files; their pickles run nothing here."""

import os
import pickle
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar_files import NAMES, contents, python2

from dgad_tk.common import UserError
from dgad_tk.data import Dataset, cache, load_dataset
from dgad_tk.data.sources import cifar, plain_pickle

FOLDERS = {
    ("cifar10", True): ("cifar-10-batches-py", "batches.meta"),
    ("cifar10", False): ("cifar-10-batches-bin", "batches.meta.txt"),
    ("cifar100", True): ("cifar-100-python", "meta"),
    ("cifar100", False): ("cifar-100-binary", "fine_label_names.txt"),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))


def as_text(value: dict[bytes, object]) -> dict[str, object]:
    """With text where Python 2 has bytes, as Python 3 would write it; torchvision reads these keys only."""
    names = {key: item for key, item in value.items() if isinstance(item, list) and isinstance(item[0], bytes)}
    return {key.decode(): [name.decode() for name in names[key]] if key in names else value[key] for key in value}


WRITERS: dict[str, Callable[[dict[bytes, object]], bytes]] = {
    "python 2": python2,
    "protocol 2": lambda value: pickle.dumps(value, protocol=2),
    "protocol 2, text": lambda value: pickle.dumps(as_text(value), protocol=2),
    "protocol 3, text": lambda value: pickle.dumps(as_text(value), protocol=3),
    "protocol 4": lambda value: pickle.dumps(value, protocol=4),
}


def write(root: Path, name: str, form: str = "python 2", n: int = 30) -> Path:
    """The dataset below `root` in one of the WRITERS' forms or in the binary one; the folder with the files."""
    folder, meta = FOLDERS[name, form != "binary"]
    (root / folder).mkdir(parents=True)
    hundred = name == "cifar100"
    for file, (pixels, labels) in contents(name, n).items():
        if form == "binary":
            columns = [np.zeros(n, np.uint8)] * hundred + [np.array(labels, np.uint8)]
            records = np.concatenate([np.stack(columns, axis=1), pixels], axis=1)
            (root / folder / f"{file}.bin").write_bytes(records.tobytes())
            continue
        values: dict[bytes, object] = {b"batch_label": b"a batch", b"data": pixels}
        values[b"fine_labels" if hundred else b"labels"] = labels
        values[b"coarse_labels"] = [label // 5 for label in labels]
        values[b"filenames"] = [f"{row}.png".encode() for row in range(n)]
        (root / folder / file).write_bytes(WRITERS[form](values))
    names = [label.encode() for label in NAMES[name]]
    if form == "binary":
        (root / folder / meta).write_bytes(b"\n".join(names) + b"\n\n")
    else:
        key = b"fine_label_names" if hundred else b"label_names"
        (root / folder / meta).write_bytes(WRITERS[form]({b"num_vis": 3072, key: names, b"other": [b"x"]}))
    return root / folder


def of_torchvision(root: Path, name: str, train: bool) -> Any:
    """torchvision's dataset over the files in `root`, its MD5 sums left out."""
    from torchvision import datasets

    parent = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]

    class Unchecked(parent):  # type: ignore[misc, valid-type]
        meta = parent.meta | {"md5": None}

        def _check_integrity(self) -> bool:
            return True

    return Unchecked(root, train=train)


def in_file_order(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Labels of all training and test images in the order of the files."""
    index = np.concatenate([dataset.train.index, dataset.val.index])
    labels = np.concatenate([dataset.train.labels, dataset.val.labels])
    return labels[np.argsort(index)].tolist(), dataset.test.labels[np.argsort(dataset.test.index)].tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["python 2", "protocol 2, text", "protocol 3, text"])
def test_pickles_equal_torchvisions(tmp_path: Path, name: str, form: str) -> None:
    folder = write(tmp_path, name, form)
    dataset = load_dataset(name, data_dir=tmp_path)
    train, test = (of_torchvision(tmp_path, name, part) for part in (True, False))
    np.testing.assert_array_equal(dataset.train.base.transpose(0, 2, 3, 1), train.data)
    np.testing.assert_array_equal(dataset.test.base.transpose(0, 2, 3, 1), test.data)
    assert in_file_order(dataset) == (train.targets, test.targets)
    assert dataset.classes == train.classes == NAMES[name]
    assert isinstance(dataset.train.base, np.memmap)
    assert dataset.options == {"data_dir": str(tmp_path)}
    assert load_dataset(name, data_dir=folder).sha256 == dataset.sha256  # the inner folder will do


@pytest.mark.parametrize("name", NAMES)
def test_every_form_has_the_same_content(tmp_path: Path, name: str) -> None:
    found = {}
    for form in [*WRITERS, "binary"]:
        write(tmp_path / form, name, form)
        found[form] = load_dataset(name, data_dir=tmp_path / form)
    assert len({dataset.sha256 for dataset in found.values()}) == 1
    binary, pickles = found["binary"], found["python 2"]
    np.testing.assert_array_equal(binary.train.base, pickles.train.base)
    assert (binary.classes, in_file_order(binary)) == (pickles.classes, in_file_order(pickles))


def test_an_incomplete_version_does_not_hide_a_whole_one(tmp_path: Path) -> None:
    (write(tmp_path, "cifar10") / "data_batch_3").unlink()
    write(tmp_path, "cifar10", "binary")
    assert len(load_dataset("cifar10", data_dir=tmp_path).train) == 135


@pytest.mark.parametrize("form", ["protocol 2", "binary"])
def test_pieces_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    write(tmp_path, "cifar10", form)
    whole = load_dataset("cifar10", data_dir=tmp_path).sha256
    monkeypatch.setattr(cifar, "BLOCK", 7)
    monkeypatch.setattr(cache, "BLOCK", 3)
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "another"))
    assert load_dataset("cifar10", data_dir=tmp_path).sha256 == whole


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_values_equal_pickles(tmp_path: Path, protocol: int) -> None:
    shared = ["x" * 300, -1, 2**31 - 1, 70_000, 2**80, -0.5, None, True, False]
    value = {"a": [shared, shared], "b": (), "3": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), "c": [], "d": {"e": [1]}}
    value["many"] = [str(n) for n in range(3000)]  # more than one batch of them, and a long memo
    path = tmp_path / "plain"
    path.write_bytes(pickle.dumps({key.encode(): item for key, item in value.items()}, protocol=protocol))
    with path.open("rb") as file:
        assert plain_pickle.read(file) == value  # the keys are text, whatever they were


# Pickles that would run code


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("file", ["batches.meta", "data_batch_1", "test_batch"])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_that_would_run_code_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path, "cifar10")
    bomb = pickle.dumps({b"data": Bomb(), b"labels": [1], b"label_names": []}, protocol=protocol)
    (folder / file).write_bytes(bomb)
    with pytest.raises(UserError, match=f"{file} cannot be read as CIFAR-10.*mkdir.*nothing was run") as error:
        load_dataset("cifar10", data_dir=tmp_path)
    assert "\n" not in str(error.value)
    assert error.value.hint
    assert not Path("exploded").exists()
    pickle.loads(bomb)  # the bomb does work
    assert Path("exploded").exists()


@pytest.mark.parametrize(
    "body",
    [
        b"cantigravity\nxyz\n.",  # to look a name up would import its module
        b"\x8c\x0bantigravity\x8c\x03xyz\x93.",
        b"(S'x'\niantigravity\nxyz\n.",
        b"(cantigravity\nxyz\no.",
        b"cantigravity\nxyz\n)\x81.",
        b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R.",
        b"cbuiltins\ngetattr\ncnumpy\nndarray\nX\x04\x00\x00\x00dump\x86R.",
        b"cnumpy\nndarray\n)\x81.",
        b"cnumpy\nndarray\n(K\x05tR.",
        b"cnumpy\nndarray\n}U\x01xK\x01sb.",
        b"cnumpy.core.multiarray\n_reconstruct\n}b.",
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
        b"cnumpy\ndtype.__init__.__globals__\n.",
        b"cbuiltins\neval\n.",
        b"cnumpy\ndtype\nN}X\x08\x00\x00\x00__init__K\x01s\x86b.",  # to change a class of ours
        b"K\x01Pid\n.",
        b"\x82\x01.",
        b"U\x02idQ.",
    ],
    ids=str,
)
def test_what_a_pickle_could_ask_for(tmp_path: Path, body: bytes) -> None:
    folder = write(tmp_path, "cifar10")
    (folder / "data_batch_1").write_bytes(b"\x80\x02" + body)
    sys.modules.pop("antigravity", None)
    members = dict(vars(plain_pickle.Call))
    with pytest.raises(UserError, match="data_batch_1 cannot be read as CIFAR-10: (its? |a )") as error:
        load_dataset("cifar10", data_dir=tmp_path)
    assert "\n" not in str(error.value)
    assert "antigravity" not in sys.modules
    assert dict(vars(plain_pickle.Call)) == members


def test_names_that_a_pickle_may_hold_are_never_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither numpy's own functions nor codecs see what a file says; what they would have made is read as data."""
    write(tmp_path, "cifar10", "protocol 2")
    monkeypatch.setattr("numpy._core.multiarray._reconstruct", lambda *_: pytest.fail("it was called"))
    monkeypatch.setattr("codecs.encode", lambda *_: pytest.fail("it was called"))
    assert len(load_dataset("cifar10", data_dir=tmp_path).test) == 30


@pytest.mark.parametrize(
    "body",
    [
        b"Nr\xff\xff\xff\x04.",  # a memo index, for which the version in C makes room: 1.3 GB
        b"\x8e" + struct.pack("<Q", 2**60) + b"x.",  # a length
        b"\x95" + struct.pack("<Q", 2**62) + b"N.",
        b"\x96" + struct.pack("<Q", 2**40) + b".",
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\0\0\0\x10\x85X\x01\0\0\0O\x87R.",  # a shape
    ],
    ids=str,
)
def test_a_short_pickle_takes_little_memory(tmp_path: Path, body: bytes) -> None:
    resource = pytest.importorskip("resource")
    (tmp_path / "bomb").write_bytes(b"\x80\x04" + body)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (tmp_path / "bomb").open("rb") as file, suppress(ValueError):
        plain_pickle.read(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KB on Linux: 64 MB


def test_a_pickle_that_is_too_large_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "cifar10")
    monkeypatch.setattr(plain_pickle, "LARGEST_BYTES", 50_000)
    with pytest.raises(UserError, match="data_batch_1 cannot be read as CIFAR-10: [0-9,]+ bytes are more than"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_random_damage_is_a_clear_error(tmp_path: Path) -> None:
    """Whatever is overwritten or cut off, reading either succeeds or is a ValueError, and soon."""
    whole = python2({b"data": np.zeros((2, 3), np.uint8), b"labels": [1, 2], b"x": (None, [b"y" * 20], 70_000)})
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(3000):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        (tmp_path / "damaged").write_bytes(damaged[: rng.integers(len(whole) // 2, len(whole) + 1)])
        with (tmp_path / "damaged").open("rb") as file:
            try:
                plain_pickle.read(file)
                outcomes.add("read")
            except ValueError:
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("nested", [b"(" + b"l" * 9, b")" + b"\x85" * 200_000, b"]" + b"]a" * 9], ids=len)
def test_nesting_is_no_way_in(tmp_path: Path, nested: bytes) -> None:
    """A key, a call and a state that are nested so deeply that hashing them would overflow the stack."""
    folder = write(tmp_path, "cifar10")
    for end in (b"K\x01s.", b")R.", b"}b."):
        (folder / "data_batch_1").write_bytes(b"\x80\x02}" + nested + end)
        with pytest.raises(UserError, match="data_batch_1 cannot be read as CIFAR-10: (its? |a )"):
            load_dataset("cifar10", data_dir=tmp_path)


# Damage


def spoil(folder: Path, how: str) -> None:
    path = folder / "data_batch_2"
    whole = path.read_bytes()
    values = pickle.loads(whole, encoding="bytes")
    match how:
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "cut in the labels":
            path.write_bytes(whole[:-300])
        case "empty":
            path.write_bytes(b"")
        case "no pickle":
            path.write_bytes(b"not found")
        case "a page":
            path.write_bytes(b"<html>not found</html>")
        case "longer":
            path.write_bytes(whole + b"x")
        case "a list":
            path.write_bytes(python2([1]))
        case "meta cut":
            (folder / "batches.meta").write_bytes(b"\x80\x02}")
        case "nine names":
            (folder / "batches.meta").write_bytes(python2({b"label_names": [b"a"] * 2 + [b"c"] * 8}))
        case "no names":
            (folder / "batches.meta").write_bytes(python2({b"names": []}))
        case "numbers as names":
            (folder / "batches.meta").write_bytes(python2({b"label_names": list(range(10))}))
        case _:
            key, value = {
                "no data": (b"data", [1]),
                "no labels": (b"labels", None),
                "too few labels": (b"labels", values[b"labels"][1:]),
                "label 10": (b"labels", [10] * 30),
                "label -1": (b"labels", [-1] * 30),
                "labels of text": (b"labels", [b"1"] * 30),
                "other size": (b"data", np.zeros((30, 3071), np.uint8)),
                "one dimension": (b"data", np.zeros(30 * 3072, np.uint8)),
                "none": (b"data", np.zeros((0, 3072), np.uint8)),
            }[how]
            more: dict[bytes, object] = {b"labels": []} if how == "none" else {}
            path.write_bytes(python2(values | {key: value} | more))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "data_batch_2 cannot be read as CIFAR-10: it ends too early"),
        ("cut in the labels", "data_batch_2 cannot be read as CIFAR-10: it ends too early"),
        ("empty", "data_batch_2 cannot be read as CIFAR-10: it is an empty file"),
        ("no pickle", "data_batch_2 cannot be read as CIFAR-10: it is no sound pickle"),
        ("a page", "data_batch_2 cannot be read as CIFAR-10: it is an HTML page"),
        ("longer", "data_batch_2 cannot be read as CIFAR-10: it is longer"),
        ("a list", "holds a list, not a dict"),
        ("meta cut", "batches.meta cannot be read as CIFAR-10's class names: it ends too early"),
        ("nine names", "2 names for 10 classes"),
        ("no names", "it holds no list 'label_names'"),
        ("numbers as names", "a int where text belongs"),
        ("no data", "it holds no array 'data'"),
        ("no labels", "it holds no list 'labels'"),
        ("too few labels", "29 labels for 30 images"),
        ("label 10", "its 30 labels are not all whole numbers from 0 to 9"),
        ("label -1", "its 30 labels are not all whole numbers from 0 to 9"),
        ("labels of text", "its 30 labels are not all whole numbers from 0 to 9"),
        ("other size", "it holds no array 'data' of rows of 3072 bytes"),
        ("one dimension", "it holds no array 'data' of rows of 3072 bytes"),
        ("none", "0 labels"),
    ],
)
def test_damaged_pickles_are_named(tmp_path: Path, how: str, message: str) -> None:
    spoil(write(tmp_path, "cifar10"), how)
    with pytest.raises(UserError, match=message) as error:
        load_dataset("cifar10", data_dir=tmp_path)
    assert error.value.hint
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [1, -1])
def test_encoded_pixels_of_another_number(tmp_path: Path, change: int) -> None:
    folder = write(tmp_path, "cifar10", "protocol 2")
    pixels = np.zeros((30, 3072), np.uint8)
    whole = pickle.dumps({b"data": pixels, b"labels": [1] * 30}, protocol=2)
    size = pixels.nbytes
    found = b"X" + struct.pack("<I", size) + bytes(size)
    assert found in whole
    changed = b"X" + struct.pack("<I", size + change) + bytes(size + change)
    (folder / "data_batch_1").write_bytes(whole.replace(found, changed))
    with pytest.raises(UserError, match=f"30 labels for {30 + change / 3072:g} images"):
        load_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("how", ["cut", "label", "empty", "names"])
def test_damaged_records_are_named(tmp_path: Path, how: str) -> None:
    folder = write(tmp_path, "cifar100", "binary")
    path = folder / "train.bin"
    whole = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(whole[:-1])
        case "label":
            path.write_bytes(bytes([0, 100]) + whole[2:])
        case "empty":
            path.write_bytes(b"")
        case "names":
            (folder / "fine_label_names.txt").write_text("apple\n")
    with pytest.raises(UserError, match="cannot be read as CIFAR-100") as error:
        load_dataset("cifar100", data_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no CIFAR-10 in .*empty") as error:
        load_dataset("cifar10", data_dir=tmp_path / "empty")
    assert "cifar-10-batches-py or cifar-10-batches-bin" in error.value.hint
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_dataset("cifar10", data_dir=tmp_path / "nowhere")
    (tmp_path / "empty" / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="cifar-10-python.tar.gz is not unpacked") as error:
        load_dataset("cifar10", data_dir=tmp_path / "empty")
    assert "tar -xzf" in error.value.hint
    (write(tmp_path, "cifar10") / "test_batch").unlink()
    with pytest.raises(UserError, match="cifar-10-batches-py: CIFAR-10 without test_batch"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_an_unofficial_file_is_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "pickles", "cifar100")
    load_dataset("cifar100", data_dir=tmp_path / "pickles")
    assert [record.getMessage().split(" is not the official")[0][-5:] for record in caplog.records] == [
        "/meta", "train", "/test",
    ]  # fmt: skip


def test_sums_are_torchvisions() -> None:
    from torchvision import datasets

    for ours, theirs in ((cifar.CIFAR10, datasets.CIFAR10), (cifar.CIFAR100, datasets.CIFAR100)):
        meta = {theirs.meta["filename"]: theirs.meta["md5"]}
        assert dict(ours.md5) == meta | dict(theirs.train_list) | dict(theirs.test_list)
        layout = ours.layouts[0]
        assert (layout.folder, layout.archive) == (theirs.base_folder, theirs.filename)
        assert list(ours.parts["train"]) == [name for name, _ in theirs.train_list]
        assert f"{ours.prefix}label_names" == theirs.meta["key"]
