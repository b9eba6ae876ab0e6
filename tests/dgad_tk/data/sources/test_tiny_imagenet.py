"""Tiny ImageNet in the layout of its archive and in the reorganised ones, against Pillow."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dgad_tk.common import UserError
from dgad_tk.data import Dataset, load_dataset

WNIDS = ["n02124075", "n01443537", "n04067472"]  # the official list is in no order either
Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))


def save(path: Path, seed: int, *, grey: bool = False, size: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size, size) if grey else (size, size, 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path, quality=90)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """What the archive unpacks to; some images are grey."""
    root = tmp_path / "data" / "tiny-imagenet-200"
    lines = []
    for row, wnid in enumerate(WNIDS):
        for n in range(6):
            save(root / "train" / wnid / "images" / f"{wnid}_{n}.JPEG", 100 * row + n, grey=n == 2)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    for n in range(9):
        save(root / "val" / "images" / f"val_{n}.JPEG", 1000 + n, grey=n == 4)
        lines.append(f"val_{n}.JPEG\t{WNIDS[n % 3]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    save(root / "test" / "images" / "test_0.JPEG", 2000)
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("".join(f"{wnid}\tsome words, more\n" for wnid in WNIDS))
    return root


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1).tobytes()


def found(dataset: Dataset, *splits: str) -> list[tuple[bytes, str]]:
    return sorted(
        (image.tobytes(), dataset.classes[label])
        for split in splits
        for image, label in zip(dataset.splits[split].take(slice(None)), dataset.splits[split].labels, strict=True)
    )


def test_equals_pillow(official: Path) -> None:
    dataset = load_dataset("tiny-imagenet", data_dir=official.parent)
    assert (dataset.classes, dataset.shape) == (sorted(WNIDS), (3, 64, 64))
    train = [(pixels(path), path.parts[-3]) for path in official.glob("train/*/images/*.JPEG")]
    assert found(dataset, "train", "val") == sorted(train)
    test = [(pixels(official / "val" / "images" / f"val_{n}.JPEG"), WNIDS[n % 3]) for n in range(9)]
    assert found(dataset, "test") == sorted(test)
    assert isinstance(dataset.train.base, np.memmap)
    assert load_dataset("tiny-imagenet", data_dir=official).sha256 == dataset.sha256


@pytest.mark.parametrize("inner", ["", "images"])
@pytest.mark.parametrize("train_too", [True, False])
def test_reorganised_is_the_same(official: Path, inner: str, train_too: bool) -> None:
    expected = load_dataset("tiny-imagenet", data_dir=official)
    for n in range(9):
        target = official / "val" / WNIDS[n % 3] / inner / f"val_{n}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        (official / "val" / "images" / f"val_{n}.JPEG").rename(target)
    (official / "val" / "images").rmdir()
    if train_too:
        for path in official.glob("train/*/images/*.JPEG"):
            path.rename(path.parents[1] / path.name)
    dataset = load_dataset("tiny-imagenet", data_dir=official)
    assert dataset.sha256 == expected.sha256
    np.testing.assert_array_equal(dataset.test.base, expected.test.base)


def test_other_annotations_are_other_labels(official: Path) -> None:
    before = load_dataset("tiny-imagenet", data_dir=official)
    path = official / "val" / "val_annotations.txt"
    path.write_text(path.read_text().replace(f"val_0.JPEG\t{WNIDS[0]}", f"val_0.JPEG\t{WNIDS[1]}"))
    after = load_dataset("tiny-imagenet", data_dir=official)
    assert after.sha256 != before.sha256
    assert np.bincount(after.test.labels).tolist() == [4, 2, 3]


def unannotated(root: Path) -> None:
    save(root / "val" / "images" / "val_9.JPEG", 0)


def rewrite(change: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / "val" / "val_annotations.txt"
        path.write_text(change(path.read_text()))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "val" / "val_annotations.txt").unlink(), "cannot read .*val_annotations.txt"),
        (lambda root: (root / "val" / "images" / "val_3.JPEG").unlink(), "line 4: 'val_3.JPEG' is no image"),
        (unannotated, "does not name val_9.JPEG"),
        (rewrite(lambda text: text + text.splitlines()[0]), "line 10: 'val_0.JPEG' .* there twice"),
        (rewrite(lambda text: text.replace(WNIDS[0], "n00000000")), "line 1: 'n00000000' is no class folder"),
        (rewrite(lambda text: "no tabs\n" + text), "line 1: '' is no class folder"),
        (rewrite(lambda text: text.replace(WNIDS[0], WNIDS[1])), f"val lacks class '{WNIDS[0]}'"),
        (lambda root: shutil.rmtree(root / "train" / WNIDS[1]), f"'{WNIDS[1]}' is no class folder"),
        (lambda root: shutil.rmtree(root / "train" / WNIDS[1] / "images"), f"{WNIDS[1]} has no image"),
        (lambda root: shutil.rmtree(root / "val"), "no Tiny ImageNet .* in"),
        (lambda root: save(root / "val" / "images" / "val_3.JPEG", 0, size=63), "val_3.JPEG is 63x63, not 64x64"),
        (lambda root: (root / "val" / "images" / "val_3.JPEG").write_bytes(b"x"), "val_3.JPEG cannot be read"),
        (lambda root: (root / "val" / "val_annotations.txt").write_bytes(b"\xff"), "cannot read"),
    ],
)
def test_damage_is_named(official: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(official)
    with pytest.raises(UserError, match=message) as error:
        load_dataset("tiny-imagenet", data_dir=official.parent)
    assert error.value.hint
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("download", [True, False])
def test_how_to_get_it_is_said(tmp_path: Path, download: bool) -> None:
    with pytest.raises(UserError, match="tiny-imagenet|Tiny ImageNet") as error:
        load_dataset("tiny-imagenet", data_dir=tmp_path, download=download)
    assert "http://cs231n.stanford.edu/tiny-imagenet-200.zip" in error.value.hint
    assert "unzip" in error.value.hint


def test_download_is_content_with_what_is_there(official: Path) -> None:
    assert len(load_dataset("tiny-imagenet", data_dir=official, download=True).test) == 9


def test_what_the_archive_has_no_place_for_is_counted(official: Path) -> None:
    assert load_dataset("tiny-imagenet", data_dir=official).notes == ()  # boxes and labels belong there
    shutil.copy(official / "val" / "images" / "val_0.JPEG", official / "train" / WNIDS[0] / "images" / "more.heic")
    assert load_dataset("tiny-imagenet", data_dir=official).notes == (
        f"{official / 'train'}: 1 file passed over in 1 of 3 class folders: 1 .heic",
    )
