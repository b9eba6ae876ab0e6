"""`dgad inspect FILE --dataset` says what a stranger's file wants; `dgad attack` takes the command that it prints."""

import json
import shlex
from pathlib import Path

import jsonschema
import pytest
import torch
from colours import CLASSES, PER_CLASS, SIZE, colour_file, colour_folder
from shared import Run, artifact, refused
from torch import nn
from victims import as_onnx

from cli.documents.table import json_schema
from cli.flags.preprocessing import interface_of
from cli.printing.preprocessings import flags_of
from dgad_tk.artifacts.preprocessing import AS_IS
from dgad_tk.artifacts.weights import save_weights
from dgad_tk.models import build_model
from evaluators.preprocessings.table import PREPROCESSINGS, candidates

NAMES = [f"colour{k:02}" for k in range(CLASSES)]
NUMBERED = [str(k) for k in range(CLASSES)]
IMAGES = ["--dataset", "imagefolder", "--data-dir", "photos", "--image-size", str(SIZE)]


@pytest.fixture
def photos(dgad: Run) -> Run:
    """The command in a folder that has the images, by class."""
    colour_folder(Path("photos"), NAMES)
    return dgad


def lines_of(result: tuple[int, str, str]) -> list[str]:
    code, out, err = result
    assert code == 0, err
    return out.splitlines()


def attacked(dgad: Run, command: str) -> int:
    """How many clean images are right when the printed command is run."""
    words = shlex.split(command)
    assert words[:2] == ["dgad", "attack"]
    code, out, err = dgad(*words[1:], "--attack", "fgsm", "--eps", "1/255", "--json", "--quiet")
    assert code == 0, err
    return int(json.loads(out)["clean"]["correct"])


FILES = {
    "torch.onnx": ("ImageNet", {}),
    "caffe.onnx": ("Caffe", {}),
    "tensorflow.onnx": ("range -1 to 1", {"nhwc": True}),
    "cifar.onnx": ("CIFAR-10", {}),
}


@pytest.mark.parametrize("file", FILES)
def test_the_preprocessing_is_found_and_the_command_gives_its_accuracy(photos: Run, file: str) -> None:
    name, options = FILES[file]
    colour_file(Path(file), PREPROCESSINGS[name].interface, **options)
    lines = lines_of(photos("inspect", file, *IMAGES))
    assert lines[0].startswith(f"{file}: onnx, takes 3 channels of 4 x 4 pixels, tells 12 classes apart; 300 test")
    rows = lines[2:14]
    leading = [row for row in rows if " best " in row or " tied " in row]
    assert rows[: len(leading)] == leading
    (own,) = [row for row in leading if shlex.join(flags_of(PREPROCESSINGS[name].interface)) in row]
    document = json.loads(photos("inspect", file, *IMAGES, "--json")[1])
    jsonschema.validate(document, json_schema("dgad/inspect/1"))
    tried = document["preprocessings"]
    assert tried["command"] == shlex.split(lines[-1])
    assert tried["n"] == CLASSES * PER_CLASS
    assert own.startswith(name)
    assert attacked(photos, lines[-1]) == tried["rows"][0]["correct"] > 0.9 * tried["n"]


def test_a_file_that_nothing_fits_says_so_and_offers_no_command(photos: Run, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES))
    as_onnx(net, tmp_path, (3, SIZE, SIZE))
    lines = lines_of(photos("inspect", "victim.onnx", *IMAGES))
    assert any(line.startswith("no preprocessing fits: of 16 preprocessings the best") for line in lines)
    assert not any(line.startswith("dgad attack") for line in lines)
    tried = json.loads(photos("inspect", "victim.onnx", *IMAGES, "--json")[1])["preprocessings"]
    assert (tried["verdict"], tried["command"]) == ("none", [])
    assert not any(row["leads"] for row in tried["rows"])


def test_numbered_classes_are_named_in_the_order_of_the_outputs(dgad: Run) -> None:
    colour_folder(Path("photos"), NUMBERED)
    colour_file(Path("net.onnx"), PREPROCESSINGS["CIFAR-10"].interface)
    lines = lines_of(dgad("inspect", "net.onnx", *IMAGES))
    assert lines[-1].endswith(f" --classes {','.join(NUMBERED)}")
    assert any(
        "counts the numbers in the names ('10' is its class 10, sorted as text it is 2)" in each for each in lines
    )
    assert " another " in lines[2]


def test_a_list_of_classes_is_written(dgad: Run) -> None:
    colour_folder(Path("photos"), NUMBERED, per_class=12)
    colour_file(Path("net.onnx"), AS_IS, in_front=1)
    ask = ("inspect", "net.onnx", *IMAGES, "--write-classes", "names.txt")
    lines = lines_of(dgad(*ask))
    assert Path("names.txt").read_text().splitlines() == ["background", *NUMBERED]
    assert lines[-1].endswith("--classes names.txt")
    assert lines_of(dgad(*ask)) == lines  # it is the same list
    Path("names.txt").write_text("mine\n")
    code, out, err = dgad(*ask)
    assert code == 2
    assert "'names.txt' exists" in err
    assert out.splitlines() == lines  # the table is not lost over it
    Path("folder").mkdir()
    refused(dgad(*ask[:-1], "folder"), "'folder' is a folder")
    assert Path("names.txt").read_text() == "mine\n"
    refused(dgad("inspect", "net.onnx", "--write-classes", "new.txt"), "--write-classes needs images")


def test_of_8_bit_numbers_only_the_channels_can_differ(photos: Run) -> None:
    """Grey levels as they are: no other range or normalisation reaches such a file."""
    colour_file(Path("net.onnx"), PREPROCESSINGS["range 0 to 255"].interface, bytes=True, nhwc=True)
    lines = lines_of(photos("inspect", "net.onnx", *IMAGES))
    assert [line.split("  ")[0] for line in lines[2:4]] == ["as is", "as is, BGR"]
    told = "the file takes 8-bit numbers and is given grey levels: nothing but the order of the channels can differ"
    assert told in lines
    assert lines[-1] == f"dgad attack --model net.onnx {shlex.join(IMAGES)}"
    assert attacked(photos, lines[-1]) > 270


def test_normalised_pixels_reach_8_bit_numbers_that_say_their_scale(photos: Run) -> None:
    name = "ImageNet"
    colour_file(Path("net.onnx"), PREPROCESSINGS[name].interface, quantised=(0.02, 110))
    lines = lines_of(photos("inspect", "net.onnx", *IMAGES))
    assert lines[2].startswith((name, "CIFAR"))
    assert any(line.startswith("ImageNet  ") and (" tied " in line or " best " in line) for line in lines)
    assert not any("nothing but the order" in line for line in lines)
    assert attacked(photos, lines[-1]) > 270


def test_a_file_of_dgad_normalises_itself(dgad: Run, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(tmp_path / "own.safetensors", build_model("resnet8", in_channels=1, classes=10), artifact())
    lines = lines_of(dgad("inspect", "own.safetensors", "--dataset", "digits", "--limit", 100))
    assert "the file carries a dgad record: it takes images as they are and normalises them itself" in lines
    assert sum(line.startswith("as is") for line in lines) == 1
    document = json.loads(dgad("inspect", "own.safetensors")[1])
    assert document["preprocessings"] is None


def test_a_doubtful_attack_offers_the_command(photos: Run) -> None:
    """With the flags as they were typed, and none that are not its own; not for a file that is fed well."""
    colour_file(Path("net.onnx"), PREPROCESSINGS["Caffe"].interface)
    question = ["attack", "--model", "net.onnx", *IMAGES, "--split=test", "--attack", "fgsm", "--eps", "1/255"]
    code, _, err = photos(*question, "--limit", 60)
    assert code == 0, err
    (hint,) = [line for line in err.splitlines() if line.startswith("hint:")]
    assert hint == f"hint: `dgad inspect net.onnx {shlex.join(IMAGES)} --split=test` tries the usual preprocessings"
    lines = lines_of(photos(*shlex.split(hint.split("`")[1])[1:]))
    assert lines[2].startswith("Caffe ")
    code, _, err = photos(*question, *flags_of(PREPROCESSINGS["Caffe"].interface), "--limit", 60)
    assert code == 0, err
    assert "hint:" not in err


def test_flags_are_read_as_they_are_written() -> None:
    for each in (*candidates(3), *candidates(1)):
        words = flags_of(each.interface)
        flags = {flag.strip("-").replace("-", "_"): value for flag, value in zip(words[::2], words[1::2], strict=True)}
        assert interface_of(**flags) == each.interface


def test_images_that_do_not_fit_are_refused(photos: Run) -> None:
    colour_file(Path("net.onnx"), AS_IS)
    wrong = ["--dataset", "imagefolder", "--data-dir", "photos", "--image-size", "8"]
    refused(
        photos("inspect", "net.onnx", *wrong),
        "'net.onnx' takes images of 4x4 (height x width), and --image-size says 8",
    )
