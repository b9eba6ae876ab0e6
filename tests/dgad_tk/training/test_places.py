"""Where images, teacher and device are may change between two processes of a run; what they are may not."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import Crash, interrupted
from shared import Run, runner

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_state, read_weights
from dgad_tk.common import UserError, sha256_file
from dgad_tk.config.training import TrainConfig
from dgad_tk.training.job import Progress
from dgad_tk.training.train import train


@pytest.fixture
def dgad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    return runner(capsys)


def write_photos(root: Path, first: int = 60) -> None:
    for part in ("train", "test"):
        for k, label in enumerate("ab"):
            folder = root / part / label
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(6):
                Image.fromarray(np.full((8, 8, 3), first + 100 * k + i, np.uint8)).save(folder / f"{i}.png")


def of_photos(**more: Any) -> TrainConfig:
    values = {"dataset": "imagefolder", "data_dir": "photos", "image_size": 8, "method": "standard", "epochs": 3}
    return TrainConfig.model_validate(values | more)


def equal(one: RunFolder, other: RunFolder) -> bool:
    pair = [read_weights(folder.best)[0] for folder in (one, other)]
    return all(bool((value == pair[1][name]).all()) for name, value in pair[0].items())


def code_of(dgad: Run, *arguments: object) -> tuple[int, str]:
    code, _, err = dgad("train", "--resume", "--quiet", *arguments)
    return code, err.replace("next: dgad export --format onnx\n", "")


def test_images_that_moved(dgad: Run) -> None:
    """The run goes on where they are now, ends with the same weights, and says from then on where they are."""
    write_photos(Path("photos"))
    whole = train(of_photos(), out=Path("whole"))
    cut = interrupted(Path("cut"), of_photos())
    assert not cut.finished()
    shutil.move("photos", "moved")
    code, err = code_of(dgad, "--out", "cut")
    assert (code, err.count("--data-dir")) == (2, 1)
    assert "the images of the run in 'cut' are not in 'photos' any more" in err
    assert "hint: say where they are now: --data-dir" in err
    assert code_of(dgad, "--out", "cut", "--data-dir", "moved") == (0, "")
    assert equal(whole, cut)
    assert str(cut.read_config().data_dir) == "moved"
    assert read_weights(cut.best)[1].dataset_options["data_dir"] == os.path.abspath("moved")
    assert load_state(cut.last)["best_sha256"] == sha256_file(cut.best)
    assert dgad("attack", "--model", cut.best, "--attack", "fgsm", "--quiet")[0] == 0
    assert code_of(dgad, "--out", "cut") == (0, "")  # it is found again without the flag


@pytest.mark.parametrize("spelling", ["./photos", "photos/", "x/../photos", "absolute", "link"])
def test_another_spelling_of_the_same_folder(dgad: Run, tmp_path: Path, spelling: str) -> None:
    write_photos(Path("photos"))
    Path("x").mkdir()
    Path("link").symlink_to("photos")
    cut = interrupted(Path("cut"), of_photos())
    best = cut.best.read_bytes()
    given = str(tmp_path / "photos") if spelling == "absolute" else spelling
    with pytest.raises(Crash):
        train(of_photos(data_dir=given), out=cut.path, resume=True, on_progress=crash)
    assert cut.best.read_bytes() == best  # its record says the real place, which is the same
    assert code_of(dgad, "--out", "cut", "--data-dir", given) == (0, "")


def crash(state: Progress) -> None:
    raise Crash


def test_other_images_are_refused_and_nothing_is_changed(dgad: Run) -> None:
    """Neither where they are now said to be, nor in a place of their own, nor for a run that has ended."""
    write_photos(Path("photos"))
    ended, cut = train(of_photos(), out=Path("ended")), interrupted(Path("cut"), of_photos())
    write_photos(Path("other"), first=61)
    before = {path: path.read_bytes() for folder in (ended, cut) for path in folder.path.glob("[!.]*.*")}
    for out in ("cut", "ended"):
        code, err = code_of(dgad, "--out", out, "--data-dir", "other")
        assert code == 2
        assert f"error: the run in '{out}' was begun with another dataset: " in err
    shutil.rmtree("photos")
    shutil.move("other", "photos")
    for out in ("cut", "ended"):
        code, err = code_of(dgad, "--out", out)
        assert code == 2
        assert f"the run in '{out}' was begun with another dataset" in err
        assert "--" not in err
    assert {path: path.read_bytes() for path in before} == before


def test_a_finished_auto_teacher_of_other_images_is_refused(dgad: Run) -> None:
    """Nothing of the student is there that could say so."""
    write_photos(Path("photos"))
    config = of_photos(method="ard", teacher_method="standard", teacher_model="resnet8", teacher_epochs=1)

    def stop(state: Progress) -> None:
        if state.role == "student":
            raise Crash

    with pytest.raises(Crash):
        train(config, out=Path("run"), on_progress=stop)
    folder = RunFolder(Path("run"))
    assert folder.teacher.finished()
    assert not folder.last.exists()
    teacher = folder.teacher.best.read_bytes()
    write_photos(Path("other"), first=61)
    code, err = code_of(dgad, "--out", "run", "--data-dir", "other")
    assert code == 2
    assert "the run in 'run/teacher' was begun with another dataset" in err
    shutil.move("photos", "moved")
    assert code_of(dgad, "--out", "run", "--data-dir", "moved") == (0, "")
    assert folder.teacher.best.read_bytes() == teacher  # the student knows it by its SHA-256


def test_a_teacher_that_moved(dgad: Run) -> None:
    """As a run folder, as a file, under another name; another one is refused, and so is none."""
    few: dict[str, Any] = {"limit_train": 64, "batch_size": 32, "epochs": 1}
    teacher = train(TrainConfig(method="standard", **few), out=Path("teacher"))
    other = train(TrainConfig(method="standard", seed=1, **few), out=Path("other"))
    few |= {"epochs": 2, "threat": {"steps": 1}}
    config = TrainConfig.model_validate({"method": "ard", "teacher": "teacher", **few})
    whole = train(config, out=Path("whole"))
    folders = {name: interrupted(Path(name), config) for name in ("folder", "file", "wrong")}
    shutil.move(teacher.path, "moved")
    shutil.copy("moved/best.safetensors", "w.safetensors")
    code, err = code_of(dgad, "--out", "folder")
    assert code == 2
    assert "the teacher of the run in 'folder' is not at 'teacher' any more" in err
    assert "hint: say where it is now: --teacher" in err
    for out, place in (("folder", "moved"), ("file", "w.safetensors")):
        code, err = code_of(dgad, "--out", out, "--teacher", place)
        assert code == 0, err
        assert equal(whole, folders[out])
        assert folders[out].read_config().teacher == place
    code, err = code_of(dgad, "--out", "wrong", "--teacher", other.path)
    assert code == 2
    assert "was begun with another teacher: resnet8 " in err
    code, err = code_of(dgad, "--out", "wrong", "--teacher", "auto")
    assert code == 2
    assert "teacher: auto, not teacher" in err
    assert folders["wrong"].read_config().teacher == "teacher"


def test_a_name_of_a_teacher_is_a_place_too(dgad: Run, weights: Path) -> None:
    """An ONNX file without a record is called what its file is called."""
    import onnx

    from exporters.export import export

    export(weights, "onnx", Path("a.onnx"))
    model = onnx.load("a.onnx")
    del model.metadata_props[:]
    onnx.save(model, "a.onnx")
    options = ["--limit-train", "64", "--batch-size", "32", "--set", "threat.steps=1", "--quiet", "--epochs", "1"]
    code, _, err = dgad("train", *options, "--teacher", "a.onnx", "--out", "run")
    assert code == 0, err
    shutil.move("a.onnx", "b.onnx")
    code, err = code_of(dgad, "--out", "run", "--teacher", "b.onnx")
    assert code == 0, err


def test_another_device(dgad: Run) -> None:
    write_photos(Path("photos"))
    cut = interrupted(Path("cut"), of_photos(device="auto"))
    assert code_of(dgad, "--out", "cut", "--device", "cpu") == (0, "")
    assert cut.read_config().device == "cpu"


def test_a_device_that_is_not_there_is_named_without_a_flag(dgad: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="^device is cuda: this torch sees no GPU"):
        train(TrainConfig(device="cuda"), out=Path("run"))
