"""Images of 6 x 10 pixels the whole way: trained on, resumed, exported in every format, attacked, shown."""

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared import Run, refused

from dgad_tk.artifacts.runs import RunFolder
from exporters.formats import EXPORTERS, load, read_record

SIZE = (6, 10)
TRAIN = ["train", "--dataset", "imagefolder", "--data-dir", "data", "--quiet", "--batch-size", "16"]
TRAIN += ["--set", "threat.steps=1", "--set", "lr=0.02"]
TRAIN_GREY = [*TRAIN, "--method", "standard", "--epochs", "1", "--image-size", "6x10"]
TRAIN_GREY += ["--set", "channels=1", "--out", "run"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path_factory.mktemp("cache")))


def folder(where: str = "data", mode: str = "RGB") -> None:
    """Class `left` is bright on the left, `right` on the right."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 4)):
        for k, name in enumerate(("left", "right")):
            Path(where, part, name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (12, 20, 3), dtype=np.uint8)
                pixels[:, 10 * k : 10 * (k + 1)] += 130
                Image.fromarray(pixels).convert(mode).save(Path(where, part, name, f"{number}.png"))


def test_the_whole_road(dgad: Run) -> None:
    folder()
    train = [*TRAIN, "--image-size", "6x10", "--resize", "crop", "--teacher-model", "resnet8", "--out", "run"]
    code, out, err = dgad(*train, "--epochs", "1", "--set", "teacher_epochs=1")
    assert code == 0, err
    config = RunFolder(Path("run")).read_config()
    assert (config.image_size, config.resize) == ("6x10", "crop")
    record = read_record(Path("run/best.safetensors"))
    assert record is not None
    assert record.input_shape == (3, *SIZE)
    assert record.dataset_options["image_size"] == "6x10"
    assert record.dataset_options["resize"] == "crop"

    code, out, err = dgad("export", "run", "--format", "all", "--calibration-samples", "48")
    assert code == 0, err
    for row in EXPORTERS.values():
        predictor = load(Path(row.filename), trust=True)
        assert predictor.input_shape == (3, *SIZE)
        assert predictor.module is not None

    attacks = ["fgsm", "pgd", "cw2", "jsma", "square", "transfer:pgd", "art:square", "art:pgd"]
    asked = [
        "--eps",
        "4/255",
        "--set",
        "cw2.max_iter=5",
        "--set",
        "square.queries=20",
        "--set",
        "art:square.max_iter=5",
    ]
    asked += [word for name in attacks for word in ("--attack", name)] + ["--surrogate", "student.onnx"]
    for name in ("student.onnx", "student.int8.onnx"):
        code, out, err = dgad("attack", "--model", name, *asked, "--json", "--output", "out")
        assert code == 0, err
        found = json.loads(out)
        assert {row["status"] for row in found["attacks"]} == {"done"}
        assert found["dataset"]["shape"] == [3, *SIZE]
        assert found["dataset"]["resize"] == "crop"
        assert not any("read at" in note or "grey" in note for note in found["model"]["notes"])
        refused(dgad("attack", "--model", name, *asked, "--image-size", "10x6"), "takes images of 6x10")


def test_pictures_of_a_page_keep_their_shape(dgad: Run) -> None:
    folder()
    code, _, err = dgad(*TRAIN, "--image-size", "6x10", "--method", "pgd-at", "--epochs", "1", "--out", "run")
    assert code == 0, err
    code, _, err = dgad(
        "attack", "--model", "run/best.safetensors", "--attack", "pgd", "--eps", "0.9", "--output", "out"
    )
    assert code == 0, err
    for page in ("run/report.html", "out/report.html"):
        found = re.findall(r'data:image/\w+;base64,([^"]+)"[^>]*width="(\d+)" height="(\d+)"', Path(page).read_text())
        assert found, page
        for data, width, height in found:
            with Image.open(BytesIO(base64.b64decode(data))) as image:
                assert image.size == (int(width), int(height))
                assert image.width * SIZE[0] == image.height * SIZE[1]


def test_a_resumed_run_is_that_of_one_go(dgad: Run) -> None:
    folder()
    train = [*TRAIN, "--method", "standard", "--image-size", "6x10", "--resize", "pad", "--set", "schedule=constant"]
    assert dgad(*train, "--epochs", "2", "--out", "whole")[0] == 0
    assert dgad(*train, "--epochs", "1", "--out", "parts")[0] == 0
    refused(dgad("train", "--out", "parts", "--resume", "--image-size", "10x6"), "image_size")
    before = Path("whole/config.yaml").read_text()
    assert "image_size: 6x10" in before
    assert "resize: pad" in before
    code, _, err = dgad("train", "--out", "whole", "--resume", "--quiet")
    assert code == 0, err
    assert Path("whole/config.yaml").read_text() == before


def test_a_grey_student_remembers_that_it_is_grey(dgad: Run) -> None:
    folder(mode="L")
    assert dgad(*TRAIN_GREY)[0] == 0
    assert dgad("export", "run")[0] == 0
    code, out, err = dgad("attack", "--model", "student.onnx", "--attack", "fgsm", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["dataset"]["shape"] == [1, *SIZE]
    assert not found["model"]["notes"]


@pytest.mark.parametrize("as_file", ["student.onnx", "run/best.safetensors"])
def test_a_grey_teacher_makes_a_grey_student(dgad: Run, as_file: str) -> None:
    folder()
    assert dgad(*TRAIN_GREY)[0] == 0
    assert dgad("export", "run")[0] == 0
    size = [] if as_file.endswith(".onnx") else ["--image-size", "6x10"]
    code, _, err = dgad(*TRAIN, *size, "--teacher", as_file, "--method", "rslad", "--epochs", "1", "--out", "taught")
    assert code == 0, err
    assert "one channel (grey), since the teacher takes one" in err
    assert read_record(Path("taught/best.safetensors")).input_shape == (1, *SIZE)  # type: ignore[union-attr]


def test_a_network_of_one_size_is_refused_before_its_teacher_is_trained(dgad: Run) -> None:
    folder()
    refused(
        dgad(*TRAIN, "--image-size", "6x10", "--student", "torchvision:vit_b_32", "--out", "run"),
        "torchvision:vit_b_32 takes no 3x6x10 images",
    )
    assert not Path("run").exists()


def test_stretched_pictures_are_said(dgad: Run) -> None:
    folder()
    code, _, err = dgad(*TRAIN, "--image-size", "8", "--method", "standard", "--epochs", "1", "--out", "run")
    assert "stretched 1.7 times" in err
    code, _, err = dgad("attack", "--model", "run/best.safetensors", "--attack", "fgsm")
    assert code == 0, err
    assert "stretched" not in err


def test_grey_pictures_that_are_trained_on_as_rgb_are_said(dgad: Run) -> None:
    folder("grey", mode="L")
    loud = [word for word in TRAIN if word != "--quiet"]
    folder()
    for where, said in (("grey", True), ("data", False)):
        train = [*loud, "--data-dir", where, "--image-size", "6x10", "--method", "standard", "--epochs", "1"]
        code, _, err = dgad(*train, "--out", f"run-{where}")
        assert code == 0, err
        assert ("--set channels=1 makes a network that takes one channel" in err) is said
    grey = ["--data-dir", "grey", "--image-size", "6x10", "--set", "channels=1", "--out", "run-one"]
    code, _, err = dgad(*loud, *grey, "--method", "standard", "--epochs", "1")
    assert code == 0, err
    assert "channels=1" not in err
    assert load(Path("run-one/best.safetensors")).input_shape == (1, *SIZE)
