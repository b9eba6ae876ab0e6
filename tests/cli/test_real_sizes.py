"""The whole road on images that are large or not square: a folder, training with all options of a step, attacks."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from shared import ROOT, Run, refused

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import read_weights
from dgad_tk.models import build_model

OPTIONS = ["--accumulate", "2", "--optimizer", "adamw", "--decay-weights-only", "--freeze-bn"]
OPTIONS += ["--augment", "random-resized-crop:0.5,flip,colour-jitter:0.1"]
STEPS = ["--set", "threat.steps=1", "--quiet"]


def photographs() -> ModuleType:
    """benchmarks/photographs.py."""
    spec = importlib.util.spec_from_file_location("photographs", ROOT / "benchmarks/photographs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_photographs_are_cut_alike_each_time_and_apart(tmp_path: Path) -> None:
    """No pixel is in a training and in a test image: they come from either side of a line."""
    made = photographs()
    for folder in ("one", "two"):
        assert made.cut(tmp_path / folder, 1, 1) == 4
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.jpg"))
    assert len(files) == 4
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
        with Image.open(tmp_path / "one" / path) as image:
            assert made.SIDES[0] <= min(image.size) <= max(image.size) <= made.SIDES[1]
            pixels = np.asarray(image).astype(int)
        picture = made.load_sample_image(f"{path.parts[1]}.jpg").astype(int)
        border = round(made.SHARE * picture.shape[1])
        part = picture[:, :border] if path.parts[0] == "train" else picture[:, border:]
        height, width = pixels.shape[:2]
        gaps = [
            np.abs(part[top : top + height : 16, left : left + width : 16] - pixels[::16, ::16]).mean()
            for top in range(part.shape[0] - height + 1)
            for left in range(part.shape[1] - width + 1)
        ]
        assert min(gaps) < 4  # what JPEG changes


def test_the_whole_road_on_images_that_are_not_square(dgad: Run) -> None:
    photographs().cut(Path("photos"), 20, 4)
    images = ["--dataset", "imagefolder", "--data-dir", "photos", "--image-size", "48x80", "--resize", "crop"]
    batch = ["--epochs", "1", "--batch-size", "8", "--teacher-model", "resnet8"]
    code, out, err = dgad("train", *images, *batch, *OPTIONS, *STEPS, "--out", "run", "--json")
    assert code == 0, err
    trained = json.loads(out)
    assert trained["augment"] == ["random-resized-crop:0.5", "flip", "colour-jitter:0.1"]
    assert (trained["accumulate"], trained["optimizer"], trained["freeze_bn"]) == (2, "adamw", True)
    config = RunFolder(Path("run")).read_config()
    assert (config.decay_weights_only, config.lr, config.teacher_lr) == (True, 1e-3, 1e-3)
    assert not RunFolder(Path("run")).teacher.read_config().freeze_bn
    for form in ("onnx", "onnx-int8", "torchscript"):
        code, _, err = dgad("export", "run", "--format", form)
        assert code == 0, err
    files = ["--model", "student.onnx", "--model", "student.int8.onnx"]
    code, _, err = dgad("attack", *files, "--suite", "fast", "--limit", "4", "--json")
    assert code == 0, err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accumulate", "0"], "accumulate: Input should be greater than or equal to 1"),
        (["--accumulate", "many"], "--accumulate must be a whole number"),
        (["--accumulate", "33"], "accumulate 33 leaves less than 2 images to a part of 64"),
        (["--optimizer", "adam"], "unknown optimizer 'adam'"),
        (["--augment", "flip,rotate"], "unknown augmentation 'rotate'"),
        (["--augment", "crop:2"], "augment 'crop' takes 0 to 1, got 2"),
        (["--optimizer", "adamw", "--set", "nesterov=true"], "nesterov is of sgd"),
        (["--set", "adam_betas=0.9"], "adam_betas"),
    ],
)
def test_bad_options_of_a_step(dgad: Run, flags: list[str], message: str) -> None:
    refused(dgad("train", *flags), message)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["torchvision:inception_v3", "torchvision:vit_b_16", "torchvision:alexnet"])
def test_a_network_that_takes_no_such_size_says_so_at_once(dgad: Run, name: str) -> None:
    photographs().cut(Path("photos"), 4, 2)
    images = ["--dataset", "imagefolder", "--data-dir", "photos", "--image-size", "48x80"]
    refused(dgad("train", *images, "--student", name, "--method", "standard"), f"{name} takes no 3x48x80 images")


def test_help_has_each_option_under_one_heading(dgad: Run) -> None:
    from cli.commands.train import train
    from cli.flags.training.groups import GROUPS

    code, out, _ = dgad("train", "--help")
    assert code == 0
    assert [line[:-1] for line in out.splitlines() if line and line[0] != " " and line.endswith(":")] == [
        *GROUPS,
        "Others",
    ]
    names = [name for each in GROUPS.values() for name in each]
    assert len(names) == len(set(names))
    assert out.split("Others:")[1].split() == ["--help", "Show", "this", "message", "and", "exit."]
    assert train.__annotations__.keys() - {"return"} <= set(names)
    for name in train.__annotations__.keys() - {"return", "settings", "as_json"}:
        assert f"  --{name.replace('_', '-')}" in out, name


@pytest.mark.slow
def test_the_whole_road_on_photographs_of_224_pixels(dgad: Run) -> None:
    """200 photographs, from weights for ImageNet's 1,000 classes as torchvision saves them, to an attacked file."""
    assert photographs().cut(Path("photos"), 80, 20) == 200
    torch.manual_seed(0)
    torch.save(build_model("torchvision:mobilenet_v3_small", in_channels=3, classes=1000).state_dict(), "theirs.pth")
    images = ["--dataset", "imagefolder", "--data-dir", "photos", "--image-size", "224"]
    student = ["--student", "torchvision:mobilenet_v3_small", "--init", "theirs.pth", "--method", "pgd-at"]
    batch = ["--batch-size", "32", "--epochs", "4", "--set", "bn_momentum=0.1", "--set", "lr=0.003"]
    options = [*OPTIONS[:5], "--augment", "random-resized-crop:0.5,flip,colour-jitter:0.1"]
    code, _, err = dgad("train", *images, *student, *batch, *options, *STEPS[:2], "--out", "run")
    assert code == 0, err
    assert "1000 classes" in err
    assert read_weights(RunFolder(Path("run")).best)[1].training["clean_accuracy"] > 0.8
    code, _, err = dgad("export", "run", "--format", "onnx")
    assert code == 0, err
    code, _, err = dgad("attack", "--model", "student.onnx", "--attack", "pgd", "--limit", "8", "--json")
    assert code == 0, err
