"""Which folder is which part, and what is left out of them: used, or named with its number, never passed over."""

import os
import socket
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from shared import runner

from dgad_tk.common import UserError
from dgad_tk.data import Dataset, load_dataset
from dgad_tk.data.endings import readable_endings
from dgad_tk.data.tree import part_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path_factory.mktemp("cache")))  # not among the images


def save(path: Path, grey: int = 0, form: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path, form)


def tree(root: Path, folders: Iterable[str], images: int = 12) -> Path:
    """Classes `ant` and `bee`, images of one grey, another in each folder."""
    for number, folder in enumerate(folders):
        for k, name in enumerate(("ant", "bee")):
            for image in range(images):
                save(root / folder / name / f"{image}.png", 50 * number + 10 * k)
    return root


def load(root: Path) -> Dataset:
    return load_dataset("imagefolder", data_dir=root, image_size=8)


# Folders that plainly are a split


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("train", "train Train TRAIN training train_set trainset train-data Training_Images train2017"),
        ("val", "val valid validation dev Validation dev_set VAL valset val2017 valid-split"),
        ("test", "test Test testing eval evaluation test_images testset"),
        (None, "images masks old trains validated develop test_old train.bak unlabeled extra my_stuff set data 2017"),
    ],
)
def test_what_a_folder_says_it_is(part: str | None, names: str) -> None:
    assert {name: part_of(name) for name in names.split()} == dict.fromkeys(names.split(), part)


@pytest.mark.parametrize(
    ("folders", "val", "test"),
    [
        (("train", "test", "valid"), "valid", "test"),
        (("Train", "Test", "Dev"), "Dev", "Test"),
        (("training", "validation", "testing"), "validation", "testing"),
        (("train", "val", "eval"), "val", "eval"),
        (("train", "valid"), "train", "valid"),  # as train/ and val/ alone have always been
        (("TRAIN", "TEST"), "TRAIN", "TEST"),
        (("train", "val", "test"), "val", "test"),
    ],
)
def test_other_names_of_the_parts_are_used(tmp_path: Path, folders: tuple[str, ...], val: str, test: str) -> None:
    dataset = load(tree(tmp_path, folders))
    greys = {folder: {50 * number, 50 * number + 10} for number, folder in enumerate(folders)}
    assert set(np.unique(dataset.train.take(slice(None)))) == greys[folders[0]]
    assert set(np.unique(dataset.val.take(slice(None)))) <= greys[val]
    assert set(np.unique(dataset.test.take(slice(None)))) == greys[test]
    assert dataset.notes == ()


@pytest.mark.parametrize("folders", [("train", "val", "valid"), ("train", "Train", "test"), ("train", "test", "eval")])
def test_two_folders_that_claim_one_part_are_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    claims = sorted(
        name for name in folders if part_of(name) == part_of(folders[-1] if "T" not in folders[1] else "train")
    )
    with pytest.raises(UserError, match=f"both '{claims[0]}' and '{claims[1]}' could be the") as error:
        load(tree(tmp_path, folders))
    assert error.value.hint


def test_what_is_no_split_is_named_once(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train", "test", "masks", "old train"))
    save(root / "cover.jpg")
    save(root / "cover.heic", form="PNG")
    (root / "README.md").write_text("x")
    (root / ".git").mkdir()
    assert load(root).notes == (
        f"{root}: passed over 2 folders that are no split (train, val or test): 'masks', 'old train'",
        f"{root}: 2 image files passed over beside the splits (cover.heic, cover.jpg)",
    )
    assert load(root).notes == load(root).notes  # the cache does not swallow them


def test_where_no_split_is_found_the_folders_that_are_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no train/, only 'ant', 'bee'"):
        load(tree(tmp_path, ("x",)) / "x")


# Endings


@pytest.mark.parametrize("ending", ["jfif", "jpe", "JFIF", "dib", "pnm", "apng", "tga", "pcx", "jp2", "avif", "webp"])
def test_what_pillow_opens_is_read(tmp_path: Path, ending: str) -> None:
    codec = {"jp2": "jpg_2000"}.get(ending, ending)
    if ending in {"jp2", "avif", "webp"} and not features.check(codec):
        pytest.skip(f"this Pillow has no {codec}")
    root = tree(tmp_path, ("train", "test"))
    form = {"jfif": "JPEG", "jpe": "JPEG", "apng": "PNG"}.get(ending.lower())
    save(root / "train" / "ant" / f"more.{ending}", form=form)
    dataset = load(root)
    assert np.bincount(dataset.train_and_val.labels).tolist() == [13, 12]
    assert dataset.notes == ()


def test_documents_films_and_tables_are_no_images() -> None:
    assert not {".pdf", ".eps", ".mpg", ".h5", ".svg", ".heic", ".psd", ".txt", ""} & set(readable_endings())


def test_an_ending_without_its_decoder_is_passed_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path, ("train", "test"))
    save(root / "train" / "ant" / "more.webp", form="PNG")
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    readable_endings.cache_clear()
    try:
        dataset = load(root)
    finally:
        readable_endings.cache_clear()
    assert len(dataset.train_and_val) == 24
    assert "1 .webp" in dataset.notes[0]


def test_files_passed_over_are_counted_by_ending_and_class(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train", "test"))
    expected = load(root).sha256
    for n in range(15):
        save(root / "train" / "bee" / "raw" / f"{n}.HEIC", form="PNG")
    (root / "train" / "bee" / "about.txt").write_text("x")
    (root / "train" / "bee" / "0001").write_text("x")
    for hidden in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini"):
        (root / "train" / "bee" / hidden).write_text("x")
    (root / "train" / "__MACOSX").mkdir()
    (root / "test" / "ant" / "x.svg").write_text("<svg/>")
    dataset = load(root)
    assert dataset.sha256 == expected
    assert dataset.notes == (
        f"{root / 'train'}: 17 files passed over in 1 of 2 class folders: 15 .heic, 1 .txt, 1 without an ending",
        f"{root / 'test'}: 1 file passed over in 1 of 2 class folders: 1 .svg",
    )


def test_files_beside_the_class_folders_are_counted(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train", "test"))
    for n in range(4):
        save(root / "train" / f"{n}.jpg")
    (root / "train" / "labels.csv").write_text("x")
    assert load(root).notes == (
        f"{root / 'train'}: 5 files passed over, since no class folder holds them: 4 .jpg, 1 .csv "
        "(0.jpg, 1.jpg, 2.jpg, ...)",
    )


def test_a_class_of_unreadable_images_alone_says_what_it_holds(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train", "test"))
    for part in ("train", "test"):
        for n in range(3):
            save(root / part / "cow" / f"{n}.heic", form="PNG")
    with pytest.raises(UserError, match=r"cow has no image that can be read, only 3 \.heic") as error:
        load(root)
    assert ".png" in error.value.hint


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_that_is_called_an_image_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, ("train", "test"))
    os.mkfifo(root / "train" / "ant" / "pipe.png")
    monkeypatch.chdir(root / "train" / "ant")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        assert "2 .png" in load(root).notes[0]


# Where they are said


def test_commands_say_what_is_left_out_and_results_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    dgad = runner(capsys)
    root = tree(tmp_path / "photos", ("train", "test"), images=4)
    save(root / "train" / "bee" / "x.heic", form="PNG")
    note = "1 file passed over in 1 of 2 class folders: 1 .heic"
    images = ["--dataset", "imagefolder", "--data-dir", "photos", "--image-size", "8"]
    train = ["train", *images, "--method", "standard", "--epochs", "1", "--out", "run"]
    code, out, err = dgad(*train, "--quiet")
    assert (code, err.count(note)) == (0, 1)
    assert "warning: " in err
    assert note not in out
    model = ["--model", "run/best.safetensors", "--attack", "fgsm", "--output", "results"]
    code, out, err = dgad("attack", *model)
    assert (code, err.count(note)) == (0, 1)
    assert note in (tmp_path / "results" / "results.json").read_text()
    assert note not in dgad("attack", *model, "--quiet")[2]
