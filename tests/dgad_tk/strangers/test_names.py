"""Names from the file system: bytes that are no UTF-8 are refused before any work, two spellings of a name are one."""

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shared import Run, artifact, runner

from cli.flags.models import check_classes
from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.common import UserError
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import load_dataset
from dgad_tk.data.cache import cached
from dgad_tk.strangers.names import same_names, shown
from dgad_tk.teachers.opening import check_record
from dgad_tk.training.train import train
from evaluators.plan.surrogates import made_on_the_spot

BAD = os.fsdecode(b"k\xfc")


@pytest.fixture
def dgad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))
    return runner(capsys)


def nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def tree(root: Path, train: tuple[str, ...], test: tuple[str, ...]) -> Path:
    """Ten images of one grey for each class, the same greys in the same places of `train` and `test`."""
    for part, names in (("train", train), ("test", test)):
        for k, name in enumerate(names):
            folder = os.path.join(root, part, name)
            os.makedirs(folder)
            for image in range(10):
                Image.fromarray(np.full((8, 8, 3), 40 * k + image, np.uint8)).save(os.path.join(folder, f"{image}.png"))
    return root


TRAIN = ["train", "--method", "standard", "--epochs", "1", "--quiet", "--limit-train", "20"]


@pytest.mark.parametrize(
    "arguments",
    [
        [*TRAIN, "--out", f"runs/{BAD}"],
        [*TRAIN, "--dataset", "imagefolder", "--data-dir", BAD],
        [*TRAIN, "--dataset", "imagefolder", f"--data-dir={BAD}"],
        [*TRAIN, "--teacher", BAD],
        [*TRAIN, "--config", f"{BAD}.yaml"],
        [*TRAIN, "--set", f"teacher={BAD}"],
        ["export", BAD],
        ["export", "--output", f"{BAD}.onnx"],
        ["attack", "--model", f"{BAD}.onnx"],
        ["attack", "--model", "x.onnx", "--output", BAD],
        ["bench", f"{BAD}.onnx"],
        ["inspect", f"{BAD}.safetensors"],
    ],
)
def test_an_argument_that_is_no_utf8_is_refused_and_shown_by_its_bytes(dgad: Run, arguments: list[str]) -> None:
    code, out, err = dgad(*arguments)
    assert (code, out) == (2, "")
    assert r"k\xfc" in err
    assert "is not UTF-8" in err
    err.encode()  # it can be printed anywhere
    assert sorted(os.listdir()) == []


def test_a_class_folder_that_is_no_utf8_is_refused_before_an_image_is_read(dgad: Run, tmp_path: Path) -> None:
    tree(tmp_path / "photos", (BAD, "tea"), (BAD, "tea"))
    code, _, err = dgad(*TRAIN, "--dataset", "imagefolder", "--data-dir", "photos", "--out", "run")
    assert code == 2
    assert r"the class folder 'k\xfc' is not UTF-8" in err
    assert "rename it" in err
    assert sorted(os.listdir()) == ["photos"]


@pytest.mark.parametrize(
    ("name", "written"), [("a\nb", r"a\nb"), ("a\x1b[31m", r"a\x1b[31m"), ("a\u2028b", r"a\u2028b")]
)
def test_a_class_name_is_one_line(tmp_path: Path, name: str, written: str) -> None:
    root = tree(tmp_path / "photos", (name, "tea"), (name, "tea"))
    with pytest.raises(UserError, match="control characters") as error:
        load_dataset("imagefolder", data_dir=root)
    assert f"'{written}'" in error.value.message


def test_names_of_images_may_hold_any_bytes(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", ("a", "b"), ("a", "b"))
    expected = load_dataset("imagefolder", data_dir=root)
    os.rename(root / "train" / "a" / "9.png", os.path.join(root, "train", "a", f"9{BAD}.png"))
    assert load_dataset("imagefolder", data_dir=root).sha256 == expected.sha256


def test_a_link_with_a_plain_name_leads_to_images_in_a_folder_without_one(tmp_path: Path) -> None:
    tree(Path(os.path.join(tmp_path, BAD)), ("a", "b"), ("a", "b"))
    (tmp_path / "plain").symlink_to(BAD)
    dataset = load_dataset("imagefolder", data_dir=tmp_path / "plain")
    assert dataset.options["data_dir"] == str(tmp_path / "plain")
    with pytest.raises(UserError, match=r"k\\xfc' is not UTF-8"):
        load_dataset("imagefolder", data_dir=Path(os.path.join(tmp_path, BAD)))


@pytest.mark.parametrize("key", ["out", "teacher", "data_dir"])
def test_the_python_interface_refuses_them_as_well(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(method="standard", epochs=1, **({key: BAD} if key != "out" else {}))
    with pytest.raises(UserError, match="is not UTF-8"):
        train(config, out=Path(BAD) if key == "out" else None)
    assert os.listdir() == []


def test_a_folder_to_work_in_may_be_called_anything(dgad: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = os.path.join(tmp_path, BAD)
    os.makedirs(folder)
    monkeypatch.chdir(folder)
    assert dgad(*TRAIN, "--out", "run")[0] == 0
    assert dgad("inspect", "run/best.safetensors")[0] == 0


def test_a_cache_folder_that_is_no_utf8_is_refused_before_surrogates_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset("imagefolder", data_dir=tree(tmp_path / "photos", ("a", "b"), ("a", "b")))
    monkeypatch.setenv("DGAD_CACHE", os.path.join(tmp_path, BAD))
    monkeypatch.setattr("evaluators.plan.surrogates.fit", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(UserError, match="the cache folder .* is not UTF-8") as error:
        made_on_the_spot(dataset)
    assert "DGAD_CACHE" in error.value.hint


# Unicode forms


def test_a_class_is_one_in_whatever_form_its_folders_are_called(tmp_path: Path) -> None:
    names = ("Zoë", "naïve", "tea")
    plain = load_dataset("imagefolder", data_dir=tree(tmp_path / "plain", names, names))
    for train_form, test_form in ((nfc, nfd), (nfd, nfc), (nfd, nfd)):
        folder = tmp_path / f"{train_form.__name__}-{test_form.__name__}"
        tree(folder, tuple(map(train_form, names)), tuple(map(test_form, names)))
        dataset = load_dataset("imagefolder", data_dir=folder)
        assert dataset.classes == sorted(map(nfc, names)) == plain.classes
        assert dataset.sha256 == plain.sha256


def test_an_entry_of_the_cache_from_before_names_were_composed_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_before(*arguments: Any, salt: str, **more: Any) -> Any:
        return cached(*arguments, salt=salt.removesuffix(" composed"), **more)

    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))
    root = tree(tmp_path / "photos", ("a", nfd("é")), ("a", nfd("é")))
    with monkeypatch.context() as patch:
        patch.setattr("dgad_tk.data.tree.composed", lambda name: name)
        patch.setattr("dgad_tk.data.sources.imagefolder.cached", as_before)
        assert load_dataset("imagefolder", data_dir=root).classes == ["a", nfd("é")]
    assert load_dataset("imagefolder", data_dir=root).classes == ["a", nfc("é")]


def test_two_folders_of_one_name_are_refused_with_the_form_that_differs(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", (nfc("é"), nfd("é"), "f"), (nfc("é"), "f"))
    with pytest.raises(UserError, match="Unicode forms") as error:
        load_dataset("imagefolder", data_dir=root)
    assert "\\u0301" in error.value.message
    assert "\\xe9" in error.value.message


def test_records_of_teachers_and_models_are_compared_by_name_and_not_by_form(tmp_path: Path) -> None:
    names = ("Zoë", "tea")
    dataset = load_dataset("imagefolder", data_dir=tree(tmp_path / "photos", names, names))
    for classes, fits in (([nfd("Zoë"), "tea"], True), (["Zoe", "tea"], False), (["tea", nfd("Zoë")], False)):
        record = artifact(shape=(3, 32, 32), classes=classes, dataset="imagefolder")
        model = Predictor(lambda x: x, None, (3, 32, 32), 2, "onnx", artifact=record)
        for check in (lambda r=record: check_record(r, dataset), lambda m=model: check_classes(Path("m"), m, dataset)):
            if fits:
                check()
            else:
                with pytest.raises(UserError, match="classes"):
                    check()


def test_what_is_shown_is_always_text_and_plain_names_stay() -> None:
    for name in ("Zoë", nfd("Zoë"), "猫", "👩\u200d🚀", "a b"):
        assert shown(name) == name
    assert shown(BAD + "\t\ud800") == r"k\xfc\t\ud800"
    assert same_names([nfc("é")], [nfd("é")])
    assert not same_names(["e"], ["é"])
    assert not same_names(["e"], ["e", "f"])
