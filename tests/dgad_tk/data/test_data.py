"""Datasets: what comes out equals what an outside reader decodes, and whatever is wrong is one clear line."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_files import random_pixels, write_fashion, write_idx
from PIL import Image
from shared import ROOT

from dgad_tk.common import UserError
from dgad_tk.data import DATASETS, Dataset, load_dataset
from dgad_tk.data.sources.fashion_mnist import _find
from dgad_tk.data.spec import Part
from dgad_tk.data.splits import make_splits, shares_images, stratified_order, without_images


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))


def write_tree(root: Path, *, folders: tuple[str, ...] = ("train", "test"), per_class: int = 3, size: int = 8) -> Path:
    for number, folder in enumerate(folders):
        for row, name in enumerate(("cat", "dog")):
            (root / folder / name).mkdir(parents=True)
            for image in range(per_class):
                pixels = random_pixels(size, size, 3, seed=100 * number + 10 * row + image)
                Image.fromarray(pixels).save(root / folder / name / f"{image}.png")
    return root


def all_rows(dataset: Dataset) -> list[bytes]:
    """Every image of train and val, as bytes, sorted."""
    return sorted(image.tobytes() for split in (dataset.train, dataset.val) for image in split.take(slice(None)))


def test_every_dataset_has_radii() -> None:
    assert all(spec.eps.keys() >= {"linf", "l2"} for spec in DATASETS.values())


def test_names_need_no_torch() -> None:
    code = "import sys, dgad_tk.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# digits


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 1293,
        "val": 144,
        "test": 360,
    }
    assert (dataset.shape, dataset.options, len(dataset.classes)) == ((1, 8, 8), {}, 10)
    found = [
        (image.tobytes(), label)
        for split in dataset.splits.values()
        for image, label in zip(split.take(slice(None)), split.labels, strict=True)
    ]
    grey, digit = load_digits(return_X_y=True)
    expected = [
        (row.tobytes(), label) for row, label in zip(np.round(grey * 255 / 16).astype(np.uint8), digit, strict=True)
    ]
    assert sorted(found) == sorted(expected)


def test_digits_are_each_callers_own() -> None:
    """Though they are read once: what one does with them is not seen by the next."""
    first = load_dataset("digits").train
    first.labels[:] = 0
    first.base[:] = 0
    second = load_dataset("digits").train
    assert second.labels.any()
    assert second.take(slice(0, 1)).any()


def test_digits_splits_never_move() -> None:
    """Figures of different versions are comparable only as long as these numbers stand."""
    dataset = load_dataset("digits")
    assert dataset.sha256 == "b194c4c4efceef49ecf5caf85905b26b97023398846a965c86d0efacfe7bb665"
    assert dataset.test.index[:8].tolist() == [175, 77, 81, 135, 94, 317, 289, 324]
    assert dataset.val.index[:8].tolist() == [1197, 88, 447, 927, 1182, 1343, 1298, 1396]


# splits


@pytest.mark.parametrize("counts", [[50, 50, 50], [200, 30, 7, 1], [1, 1]])
def test_prefixes_are_nearly_proportional(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    order = stratified_order(labels, "test")
    assert sorted(order.tolist()) == list(range(len(labels)))
    for n in range(1, len(labels) + 1):
        expected = n * np.array(counts) / len(labels)
        found = np.bincount(labels[order[:n]], minlength=len(counts))
        assert np.abs(found - expected).max() <= 0.5 + len(counts) / 2


def test_balanced_classes_differ_by_at_most_one() -> None:
    labels = np.tile(np.arange(10, dtype=np.int64), 20)
    order = stratified_order(labels, "test")
    for n in range(1, 201):
        assert np.ptp(np.bincount(labels[order[:n]], minlength=10)) <= 1
    first = [tuple(labels[stratified_order(labels, purpose)[:3]]) for purpose in "abcdef"]
    assert len(set(first)) > 1  # short prefixes are not always the first classes


def test_val_is_held_out_of_train_without_overlap(tmp_path: Path) -> None:
    arrays = write_fashion(tmp_path, n=200)
    dataset = load_dataset("fashion-mnist", data_dir=tmp_path)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (180, 20, 200)
    assert sorted([*dataset.train.index, *dataset.val.index]) == list(range(200))
    assert np.bincount(dataset.val.labels).tolist() == [2] * 10
    assert all_rows(dataset) == sorted(image.tobytes() for image in arrays["train-images-idx3-ubyte"])


def part_of_classes(*counts: int) -> Part:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    return Part(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)


@pytest.mark.parametrize(
    "counts", [(1,) * 20, (1, 1), (2,) * 5, (1,) * 30 + (2,) * 3, (200, 1, 1, 1), (1,) * 500 + (5000,), (3, 1, 1, 1)]
)
def test_every_class_keeps_an_image_to_train_on(counts: tuple[int, ...]) -> None:
    part = part_of_classes(*counts)
    train, val, _ = make_splits({"train": part, "test": part})
    assert set(train.labels.tolist()) == set(range(len(counts)))
    assert len(val) >= 1
    if max(counts) == 1:
        assert shares_images(train, val)
    else:  # validation takes what others can spare
        assert not shares_images(train, val)
        assert sorted([*train.index, *val.index]) == list(range(len(part.labels)))


@pytest.mark.parametrize("counts", [(50, 50, 50), (200, 30, 7, 6), (10, 10), (1000, 20, 20)])
def test_splits_of_enough_images_are_the_first_tenth_and_the_rest(counts: tuple[int, ...]) -> None:
    part = part_of_classes(*counts)
    train, val, _ = make_splits({"train": part, "test": part})
    order = stratified_order(part.labels, "train")
    held_out = round(len(order) / 10)
    assert val.index.tolist() == order[:held_out].tolist()
    assert train.index.tolist() == order[held_out:].tolist()


def test_one_image_a_class_is_trained_and_validated_on_and_said(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", per_class=1)
    dataset = load_dataset("imagefolder", data_dir=root)
    assert sorted(dataset.train.labels.tolist()) == [0, 1]
    assert sorted(dataset.train_and_val.index.tolist()) == [0, 1]  # none twice
    assert dataset.notes == (
        "imagefolder: no class has an image to spare, so validation is on 1 of the 2 training images, and its accuracy "
        "is none of held-out images",
    )
    assert load_dataset("imagefolder", data_dir=root, only="test").notes == ()  # nothing is trained


def test_classes_that_a_limit_empties_are_counted_and_named() -> None:
    part = part_of_classes(*(10,) * 20)
    train, _, _ = make_splits({"train": part, "test": part})
    names = [f"item{k:02d}" for k in range(20)]
    assert without_images(train, names) == ""
    assert without_images(train.subset(20), names) == ""
    few = train.subset(5)
    lost = [name for k, name in enumerate(names) if k not in few.labels]
    assert without_images(few, names) == (
        f"classes without an image to train on: 15 of 20 ({', '.join(lost[:10])}, ...)"
    )


def test_a_channel_that_hardly_varies_is_divided_by_a_grey_level(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", per_class=6)
    for path in root.glob("*/*/*.png"):
        pixels = np.array(Image.open(path))
        pixels[..., 2] = 7
        pixels[0, 0, 2] = 8  # one of 64 pixels: a deviation of an eighth of a grey level
        Image.fromarray(pixels).save(path)
    dataset = load_dataset("imagefolder", data_dir=root, image_size=8)
    pixels = dataset.train.take(slice(None)) / 255
    mean, std = dataset.statistics()
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], pixels.std(axis=(0, 2, 3))[:2], rtol=1e-12)
    assert std[2] == 1 / 255
    assert dataset.flat_channels == (2,)
    assert load_dataset("digits").flat_channels == ()


def test_validation_never_exceeds_a_thousand() -> None:
    part = Part(np.zeros((20_000, 1, 1, 1), np.uint8), np.tile(np.arange(10, dtype=np.int64), 2000))
    train, val, _ = make_splits({"train": part, "test": part})
    assert (len(train), len(val)) == (19_000, 1000)


def test_take_and_subset(tmp_path: Path) -> None:
    dataset = load_dataset("imagefolder", data_dir=write_tree(tmp_path / "data", per_class=10), image_size=8)
    test = dataset.test
    assert isinstance(test.base, np.memmap)
    images = test.take(np.array([3, 0]))
    assert type(images) is np.ndarray
    assert images.flags.writeable
    np.testing.assert_array_equal(images, test.base[test.index[[3, 0]]])
    assert len(test.subset(4)) == 4
    np.testing.assert_array_equal(test.subset(4).take([3]), test.take([3]))
    assert len(test.subset(10**6)) == len(test)
    with pytest.raises(UserError, match="at least 1, got 0"):
        test.subset(0)


# Fashion-MNIST


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_equals_torchvisions(tmp_path: Path, suffix: str) -> None:
    from torchvision.datasets import FashionMNIST

    write_fashion(tmp_path / "FashionMNIST" / "raw", suffix="")  # torchvision reads unpacked files only
    expected = FashionMNIST(tmp_path, train=False)
    write_fashion(tmp_path / "other", suffix=suffix)
    for root in (tmp_path, tmp_path / "other"):
        test = load_dataset("fashion-mnist", data_dir=root).test
        np.testing.assert_array_equal(test.base[:, 0], expected.data.numpy())
        np.testing.assert_array_equal(test.labels, expected.targets.numpy()[test.index])
    assert load_dataset("fashion-mnist", data_dir=tmp_path).classes == expected.classes


def test_fashion_mnist_without_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgad_tk.data.sources.fashion_mnist.DEBIAN", tmp_path / "debian")
    with pytest.raises(UserError, match="no Fashion-MNIST in") as error:
        load_dataset("fashion-mnist")
    assert "dataset-fashion-mnist" in error.value.hint
    write_fashion(tmp_path / "debian")
    assert load_dataset("fashion-mnist").options == {}
    assert _find(tmp_path / "debian")[0] == tmp_path / "debian"


def test_fashion_mnist_names_what_is_missing(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="without t10k-labels-idx1-ubyte"):
        load_dataset("fashion-mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    "damage", ["cut", "flip", "empty", "not gz", "wrong kind", "too long", "too few labels", "label 10"]
)
def test_damaged_fashion_mnist_is_named(tmp_path: Path, damage: str) -> None:
    write_fashion(tmp_path)
    images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz"
    whole = images.read_bytes()
    if damage == "too few labels":
        write_idx(labels, np.zeros(39, np.uint8))
    elif damage == "label 10":
        write_idx(labels, np.full(40, 10, np.uint8))
    elif damage == "wrong kind":
        write_idx(images, np.zeros(40, np.uint8))
    else:
        middle = len(whole) // 2
        images.write_bytes({
            "cut": whole[:middle],
            "flip": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "empty": b"",
            "not gz": b"<html>not found</html>",
            "too long": gzip.compress(gzip.decompress(whole) + b"x"),
        }[damage])  # fmt: skip
    with pytest.raises(
        UserError, match=f"train-{'labels' if 'label' in damage else 'images'}.*cannot be read"
    ) as error:
        load_dataset("fashion-mnist", data_dir=tmp_path)
    assert "\n" not in error.value.message


# imagefolder


def test_imagefolder_equals_pillow(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", per_class=4, size=8)
    Image.fromarray(random_pixels(13, 9, 3)).save(root / "train" / "cat" / "large.jpg", quality=90)
    Image.fromarray(random_pixels(9, 5)).save(root / "train" / "cat" / "grey.bmp")
    dataset = load_dataset("imagefolder", data_dir=root, image_size=8)
    expected = []
    for path in root.glob("train/*/*"):
        with Image.open(path) as image:
            rgb = image.convert("RGB").resize((8, 8), Image.Resampling.BILINEAR)
            expected.append(np.asarray(rgb).transpose(2, 0, 1).tobytes())
    assert all_rows(dataset) == sorted(expected)
    # Images that have the size already are untouched.
    with Image.open(root / "test" / "dog" / "2.png") as image:
        np.testing.assert_array_equal(dataset.test.base[6], np.asarray(image).transpose(2, 0, 1))
    assert dataset.options == {"data_dir": str(root), "image_size": 8}


def test_imagefolder_labels_follow_sorted_names(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data")
    dataset = load_dataset("imagefolder", data_dir=root)
    assert (dataset.classes, dataset.shape) == (["cat", "dog"], (3, 32, 32))
    for position, label in enumerate(dataset.test.labels):
        row = int(dataset.test.index[position])
        path = root / "test" / dataset.classes[label] / f"{row % 3}.png"
        with Image.open(path) as image:
            expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        np.testing.assert_array_equal(dataset.test.take([position])[0], expected)


def test_threads_decode_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "data", per_class=9)
    alone = load_dataset("imagefolder", data_dir=root)
    monkeypatch.setattr("dgad_tk.data.decoding.THREADS_FROM_BYTES", 0)
    monkeypatch.setattr("dgad_tk.data.decoding.BLOCK_BYTES", 1)
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "another"))
    assert load_dataset("imagefolder", data_dir=root).sha256 == alone.sha256


@pytest.mark.parametrize(
    ("folders", "val_from", "test_from"),
    [
        (("train", "test"), "train", "test"),
        (("train", "val"), "train", "val"),
        (("train", "val", "test"), "val", "test"),
    ],
)
def test_which_folder_plays_which_part(tmp_path: Path, folders: tuple[str, ...], val_from: str, test_from: str) -> None:
    root = write_tree(tmp_path / "data", folders=folders, size=32)
    dataset = load_dataset("imagefolder", data_dir=root)

    def pixels(folder: str) -> set[bytes]:
        return {np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes() for path in root.glob(f"{folder}/*/*")}

    assert {image.tobytes() for image in dataset.test.take(slice(None))} == pixels(test_from)
    assert {image.tobytes() for image in dataset.val.take(slice(None))} <= pixels(val_from)
    assert len(dataset.train) == 6 - (val_from == "train")


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data")
    expected = load_dataset("imagefolder", data_dir=root).sha256
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / "._0.png").write_text("x")
    (root / "train" / ".DS_Store").write_text("x")
    (root / "train" / ".thumbnails").mkdir()
    (root / "train" / "cat" / "loop").symlink_to(root / "train" / "cat")
    (root / "train" / "cat" / "self").symlink_to("self")
    (root / "train" / "dog" / "images").mkdir()  # as in Tiny-ImageNet
    (root / "train" / "dog" / "2.png").rename(root / "train" / "dog" / "images" / "2.PNG")
    assert load_dataset("imagefolder", data_dir=root).sha256 == expected


def test_unusual_but_sound_images(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data")
    cat = root / "train" / "cat"
    palette = Image.fromarray(random_pixels(8, 8, 3)).quantize(16)
    palette.save(cat / "palette.png", transparency=bytes([0, 128, 255]))
    Image.fromarray(random_pixels(8, 8, 4)).save(cat / "alpha.png")
    Image.fromarray(random_pixels(8, 8) > 127).save(cat / "bits.png")
    palette.save(cat / "animated.gif", save_all=True, append_images=[palette])
    Image.fromarray(random_pixels(8, 8, 4), mode=None).convert("CMYK").save(cat / "print.tif")
    assert len(load_dataset("imagefolder", data_dir=root).train) == 11 - 1


def spoil(root: Path, how: str) -> None:
    cat = root / "train" / "cat"
    whole = (cat / "0.png").read_bytes()
    match how:
        case "cut":
            (cat / "0.png").write_bytes(whole[: len(whole) // 2])
        case "empty file":
            (cat / "0.png").write_bytes(b"")
        case "no image":
            (cat / "0.png").write_text("hello")
        case "16 bits":
            Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(cat / "0.png")
        case "loop":
            (cat / "7.png").symlink_to("7.png")
        case "dead link":
            (cat / "7.png").symlink_to(root / "nowhere.png")
        case "empty class":
            (root / "train" / "eel").mkdir()
        case "class only in test":
            (root / "test" / "cat").rename(root / "test" / "cats")
        case "class only in train":
            (root / "train" / "cat").rename(root / "train" / "zebra")
            (root / "test" / "cat").rename(root / "test" / "zebra")
            (root / "train" / "dog").rename(root / "train" / "eel")
            (root / "test" / "dog").rename(root / "hidden")
            write_tree(root / "more")
            (root / "more" / "test" / "cat").rename(root / "test" / "eel")
            (root / "more" / "train" / "cat").rename(root / "train" / "ant")
        case "one class":
            for folder in ("train", "test"):
                (root / folder / "dog").rename(root / f"away-{folder}")
        case "no train":
            (root / "train").rename(root / "learn")
        case "no test":
            (root / "test").rename(root / "judge")
        case "no class folders":
            (root / "test").rename(root / "old")
            (root / "test").mkdir()
        case _:
            raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("loop", r"cannot read .*7\.png"),
        ("cut", r"cat.0\.png cannot be read as an image"),
        ("empty file", r"cat.0\.png cannot be read as an image"),
        ("no image", r"cat.0\.png cannot be read as an image"),
        ("16 bits", r"cat.0\.png has 16-bit"),
        ("dead link", r"cannot read .*7\.png"),
        ("empty class", r"eel has no image"),
        ("class only in test", r"train lacks class 'cats' of test"),
        ("class only in train", r"test lacks class 'ant' of train"),
        ("one class", r"at least 2 class folders are needed for .*, found only 'cat'"),
        ("no train", r"has no train/"),
        ("no test", r"has no test/ or val/"),
        ("no class folders", r"at least 2 class folders are needed for test, found none"),
    ],
)
def test_unusable_trees(tmp_path: Path, how: str, message: str) -> None:
    root = write_tree(tmp_path / "data")
    spoil(root, how)
    with pytest.raises(UserError, match=message) as error:
        load_dataset("imagefolder", data_dir=root)
    assert error.value.hint
    assert "\n" not in str(error.value)


# options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "unknown dataset 'digit'"),
        ("digits", {"image_size": 32}, "takes no --image-size"),
        ("digits", {"data_dir": Path("x")}, "takes no --data-dir"),
        ("imagefolder", {}, "needs --data-dir"),
        ("imagefolder", {"data_dir": Path("nowhere")}, "nowhere is not a folder"),
        ("imagefolder", {"data_dir": Path("~nobody-here/x")}, "is not a folder"),
        (
            "imagefolder",
            {"data_dir": Path("."), "image_size": 3},
            "must be from 4 to 1024 pixels a side, got 3",
        ),
        (
            "imagefolder",
            {"data_dir": Path("."), "image_size": 0},
            "must be from 4 to 1024 pixels a side, got 0",
        ),
        (
            "imagefolder",
            {"data_dir": Path("."), "image_size": 1025},
            "must be from 4 to 1024 pixels a side, got 1025",
        ),
        ("fashion-mnist", {"data_dir": Path("nowhere")}, "nowhere is not a folder"),
    ],
)
def test_options_that_do_not_apply(name: str, options: dict[str, Path | int], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_dataset(name, **options)  # type: ignore[arg-type]
    assert error.value.hint


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no train/"):
        load_dataset("imagefolder", data_dir=tmp_path)
    with pytest.raises(UserError, match="no Fashion-MNIST in"):
        load_dataset("fashion-mnist", data_dir=tmp_path)
