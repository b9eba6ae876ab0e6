"""What `dgad train` says of its data before it trains: classes that a limit empties, channels that hardly vary."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shared import Run, runner

from dgad_tk.artifacts.weights import read_weights


@pytest.fixture
def dgad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`dgad train` in a folder with photos of 12 classes, of which the first channel is black."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for k in range(12):
            (folder := tmp_path / "photos" / part / f"item{k:02d}").mkdir(parents=True)
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            pixels[..., 0] = 0
            for image in range(2):
                Image.fromarray(pixels).save(folder / f"{image}.png")
    options = ("--dataset", "imagefolder", "--data-dir", "photos", "--image-size", "8", "--method", "standard")
    return runner(capsys, "train", *options, "--epochs", "1", "--quiet", "--out", "run")


def test_classes_that_the_limit_empties_are_counted_even_if_quiet(dgad: Run) -> None:
    code, out, err = dgad("--limit-train", 4)
    assert code == 0
    assert err.count("warning: classes without an image to train on: 8 of 12 (item") == 1
    assert "with --limit-train 4" in err
    assert "warning" not in out


def test_a_flat_channel_is_named_where_images_are_normalised(dgad: Run) -> None:
    code, _, err = dgad("--set", "normalize=dataset")
    assert code == 0
    assert "warning: channels that hardly vary over the training images: 0 (from 0)" in err
    assert read_weights(Path("run/best.safetensors"))[1].normalize["std"][0] == 1 / 255


def test_nothing_is_said_of_sound_data(dgad: Run) -> None:
    code, _, err = dgad()
    assert (code, err) == (0, "next: dgad export --format onnx\n")
