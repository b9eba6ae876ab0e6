"""Image folders as they are asked for: size, way, channels and the one split that is needed."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dgad_tk.common import UserError, cache_dir
from dgad_tk.data import Dataset, load_dataset
from dgad_tk.data.splits import stretched


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path_factory.mktemp("cache")))


def tree(root: Path, folders: Sequence[str], *, size: tuple[int, int] = (12, 20), mode: str = "RGB") -> Path:
    """Classes `ant` and `bee`, four noisy pictures of a height and width each, in each folder."""
    rng = np.random.default_rng(0)
    for folder in folders:
        for name in ("ant", "bee"):
            (root / folder / name).mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(root / folder / name / f"{number}.png")
    return root


def load(root: Path, **asked: Any) -> Dataset:
    return load_dataset("imagefolder", data_dir=root, **asked)


def entries() -> set[str]:
    return {path.name for path in (cache_dir() / "datasets").glob("imagefolder-*")}


def test_pixels_are_those_of_pillow(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train", "test"))
    dataset = load(root, image_size="6x10")
    assert dataset.shape == (3, 6, 10)
    assert dataset.options["image_size"] == "6x10"
    with Image.open(root / "test" / "ant" / "0.png") as file:
        expected = np.asarray(file.resize((10, 6), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    np.testing.assert_array_equal(dataset.test.base[0], expected)


def test_grey_is_that_of_pillow(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train", "test"))
    dataset = load(root, image_size="12x20", channels=1)
    assert dataset.shape == (1, 12, 20)
    assert dataset.options["channels"] == 1
    with Image.open(root / "test" / "bee" / "3.png") as file:
        np.testing.assert_array_equal(dataset.test.base[7, 0], np.asarray(file.convert("L")))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_pictures_of_every_kind_become_grey(tmp_path: Path, mode: str) -> None:
    root = tree(tmp_path, ("train", "test"), mode="RGB" if mode == "CMYK" else mode)
    if mode == "CMYK":  # PNG has no such pixels
        for path in root.rglob("*.png"):
            Image.open(path).convert("CMYK").save(path.with_suffix(".tif"))
            path.unlink()
    assert load(root, image_size=8, channels=1).shape == (1, 8, 8)


def test_each_request_has_a_cache_entry_of_its_own(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train", "test"))
    asked: list[dict[str, Any]] = [{"resize": way, "channels": n} for way in ("squeeze", "crop", "pad") for n in (1, 3)]
    asked += [{"image_size": size} for size in (8, "6x10", "10x6")]
    found = [load(root, **{"image_size": "4x8", **each}) for each in asked]
    assert len({dataset.sha256 for dataset in found}) == len(asked)
    assert len(entries()) == len(asked)
    assert load(root, image_size="4x8", resize="squeeze", channels=3).sha256 == found[1].sha256


def test_options_load_the_same_again(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train", "test"))
    for asked in ({"image_size": 8}, {"image_size": "6x10", "resize": "pad"}, {"image_size": "6x10", "channels": 1}):
        dataset = load(root, **asked)
        options = dict(dataset.options)
        assert options == {"data_dir": str(root), **asked}
        assert load(Path(str(options.pop("data_dir"))), **options).sha256 == dataset.sha256


def test_an_older_entry_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of square, squeezed RGB images is a SHA-256 of these lines, as it was before there was anything else."""
    from hashlib import sha256

    root = tree(tmp_path, ("train", "test"))
    load(root, image_size=8)
    lines = ["imagefolder format 1 image_size 8"]
    files = [path for part in ("test", "train") for path in sorted((root / part).rglob("*.png"))]
    lines += [f"{path.relative_to(root)}\0{sha256(path.read_bytes()).hexdigest()}" for path in files]
    key = sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    assert entries() == {f"imagefolder-{key[:24]}"}


@pytest.mark.parametrize("asked", [{"image_size": 8}, {"resize": "crop"}, {"channels": 1}])
def test_a_dataset_of_one_size_takes_none(asked: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="takes no"):
        load_dataset("digits", **asked)


def test_it_is_said_when_pictures_are_stretched(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train", "test"), size=(12, 36))
    assert "stretched 3.0 times" in stretched(load(root, image_size=8))
    assert not stretched(load(root, image_size="8x24"))
    assert not stretched(load(root, image_size=8, resize="crop"))


# The one split that is needed


@pytest.mark.parametrize("folder", ["test", "val", "Validation", "eval"])
def test_the_attacked_split_is_enough(tmp_path: Path, folder: str) -> None:
    root = tree(tmp_path, (folder,))
    dataset = load(root, image_size="6x10", only="test")
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (0, 0, 8)
    assert dataset.shape == (3, 6, 10)
    assert dataset.classes == ["ant", "bee"]
    with pytest.raises(UserError, match="has no train/"):
        load(root)


def test_class_folders_alone_are_test_images(tmp_path: Path) -> None:
    root = tree(tmp_path, ("",))
    dataset = load(root, image_size=8, only="test")
    assert len(dataset.test) == 8
    assert any("taken as test images" in note for note in dataset.notes)
    beside = tree(tmp_path / "more", ("test",))
    np.testing.assert_array_equal(dataset.test.base, load(beside, image_size=8, only="test").test.base)


def test_folders_of_datasets_are_no_classes(tmp_path: Path) -> None:
    tree(tmp_path / "cars", ("train", "test"))
    tree(tmp_path / "flowers", ("train", "test"))
    with pytest.raises(UserError, match="has no test/ or val/, only 'cars', 'flowers'"):
        load(tmp_path, only="test")


def test_the_training_split_is_enough_for_itself(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train",))
    assert len(load(root, only="train").train) == 7
    assert len(load(root, only="val").val) == 1
    with pytest.raises(UserError, match="has no test/ or val/") as error:
        load(root, only="test")
    assert "class folders alone" in error.value.hint


def test_an_attack_is_asked_for_no_training_images(tmp_path: Path) -> None:
    root = tree(tmp_path, ("test",))
    shutil.rmtree(root / "test" / "bee")
    for folder in (root, root / "nowhere", None):
        with pytest.raises(UserError) as error:
            load_dataset("imagefolder", data_dir=folder, image_size=8, only="test")
        assert "test/CLASS/image files are enough" in error.value.hint
        with pytest.raises(UserError) as error:
            load_dataset("imagefolder", data_dir=folder, image_size=8)
        assert "train/CLASS/image files, and test/CLASS/" in error.value.hint


def test_all_that_is_there_is_loaded(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train", "val", "test"))
    assert load(root, only="test").sha256 == load(root).sha256


@pytest.mark.parametrize("only", ["train", "val"])
def test_other_splits_are_not_made_up(tmp_path: Path, only: str) -> None:
    with pytest.raises(UserError, match="has no train/"):
        load(tree(tmp_path, ("test",)), only=only)
