"""A model file and an image folder settle the shape together; what neither says is asked for in one line.

The files look at the mean of an image alone, whatever its shape, so that the right answers are counted by hand.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper as h
from onnx import numpy_helper as nh
from PIL import Image
from shared import Run, refused
from torch import nn

from dgad_tk.common import cache_dir

Axes = Sequence[int | str] | None
SIZE = (6, 10)
LEVELS = {"dark": (50, 60, 70, 84), "light": (95, 105, 115, 150)}
"""Grey levels; the files put the limit at 0.35, which is 89.25. Within 8 levels, 84 and 95 change sides."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path_factory.mktemp("cache")))


def folder(where: str, parts: Sequence[str] = ("train", "test"), size: tuple[int, int] = SIZE, mode: str = "L") -> None:
    for part in parts:
        for name, levels in LEVELS.items():
            Path(where, part, name).mkdir(parents=True)
            for level in levels:
                Image.new("L", size[::-1], level).convert(mode).save(Path(where, part, name, f"{level}.png"))


def mean_file(path: str, axes: Axes, values: int, batch: bool = True) -> None:
    """An ONNX file that takes an input of these axes and of so many numbers an image; light above 0.35."""
    w = np.float32(np.stack([-np.ones(values), np.ones(values)]) / values)
    flat = h.make_node("Reshape", ["x", "shape"], ["f"])
    nodes = [flat, h.make_node("Gemm", ["f", "w", "b"], ["z"], transB=1)]
    constants = [nh.from_array(w, "w"), nh.from_array(np.float32([0.35, -0.35]), "b")]
    constants.append(nh.from_array(np.int64([-1 if batch else 1, values]), "shape"))
    ends = [h.make_tensor_value_info("x", 1, axes)], [h.make_tensor_value_info("z", 1, ["N" if batch else 1, 2])]
    graph = h.make_graph(nodes, "g", *ends, constants)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)


def attacked(dgad: Run, model: str, *more: object) -> dict[str, Any]:
    asked = ("--dataset", "imagefolder", "--data-dir", "data", "--attack", "pgd", "--eps", "8/255", "--json")
    code, out, err = dgad("attack", "--model", model, *asked, *more)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    assert (found["clean"]["correct"], found["worst_case"][0]["robust"]) == (8, 6)
    return found


GREY = [
    (["N", 1, 6, 10], 60, ()),
    (["N", 6, 10, 1], 60, ()),
    ([1, 6, 10], 60, ()),
    ([6, 10, 1], 60, ()),
    (["N", "C", 6, 10], 60, ()),
    (["N", 6, 10], 60, ()),
    (["N", "C", "H", "W"], 60, ("--image-size", "6x10")),
    (["N", 1, "H", "W"], 60, ("--image-size", "6x10")),
    (["N", 60], 60, ("--image-size", "6x10")),
    (["N", 1, 1, 60], 60, ("--image-size", "6x10")),
    (None, 60, ("--image-size", "6x10")),
]


@pytest.mark.parametrize(("axes", "values", "flags"), GREY, ids=lambda value: str(value).replace(" ", ""))
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_is_read_as_grey_where_the_file_takes_one_channel(
    dgad: Run, axes: Axes, values: int, flags: tuple[str, ...], mode: str
) -> None:
    folder("data", mode=mode)
    mean_file("grey.onnx", axes, values, batch=axes is None or axes[0] == "N")
    found = attacked(dgad, "grey.onnx", *flags)
    assert found["dataset"]["shape"] == [1, 6, 10]
    assert any("one channel (grey)" in note for note in found["model"]["notes"])


COLOUR = [
    (["N", 3, 6, 10], ()),
    (["N", 6, 10, 3], ()),
    (["N", "C", "H", "W"], ("--image-size", "6x10")),
    (["N", 180], ("--image-size", "6x10", "--layout", "nchw")),
]


@pytest.mark.parametrize(("axes", "flags"), COLOUR, ids=lambda value: str(value).replace(" ", ""))
def test_a_size_that_the_file_says_need_not_be_given(dgad: Run, axes: Axes, flags: tuple[str, ...]) -> None:
    folder("data", size=(12, 12))
    mean_file("rgb.onnx", axes, 180)
    found = attacked(dgad, "rgb.onnx", *flags)
    assert found["dataset"]["shape"] == [3, 6, 10]
    assert not any("grey" in note for note in found["model"]["notes"])
    assert any("read at 6x10" in note for note in found["model"]["notes"]) is not bool(flags)


@pytest.mark.parametrize("way", ["squeeze", "crop", "pad"])
def test_the_way_to_resize_is_said(dgad: Run, way: str) -> None:
    folder("data")
    mean_file("rgb.onnx", ["N", 3, 6, 10], 180)
    assert attacked(dgad, "rgb.onnx", "--resize", way, "--output", "out")["dataset"]["resize"] == way
    assert f"({way})" in Path("out/report.html").read_text() or way == "squeeze"
    assert "6 x 10 pixels (height x width)" in Path("out/report.html").read_text()


def test_pad_darkens_what_squeeze_does_not(dgad: Run) -> None:
    """6 x 10 pixels in 10 x 10: the mean falls to 6/10, below 0.35 for all but one, which has 150 levels: 0.353."""
    folder("data")
    mean_file("square.onnx", ["N", 3, 10, 10], 300)
    asked = ("--model", "square.onnx", "--dataset", "imagefolder", "--data-dir", "data", "--attack", "fgsm", "--json")
    correct = {}
    for way in ("squeeze", "crop", "pad"):
        code, out, err = dgad("attack", *asked, "--resize", way)
        assert code == 0, err
        correct[way] = json.loads(out)["clean"]["correct"]
    assert correct == {"squeeze": 8, "crop": 8, "pad": 5}


@pytest.mark.parametrize(("axes", "values", "shape"), [(["N", 64], 64, [1, 8, 8]), (["N", 1, 192], 192, [3, 8, 8])])
def test_flat_images_are_squares_where_their_number_allows_that(
    dgad: Run, axes: Axes, values: int, shape: list[int]
) -> None:
    folder("data")
    mean_file("flat.onnx", axes, values)
    order = ("--layout", "nhwc") if shape[0] == 3 else ()
    found = attacked(dgad, "flat.onnx", *order)
    assert found["dataset"]["shape"] == shape
    assert f"8x8 (height x width), the square of {values} numbers" in " ".join(found["model"]["notes"])
    attacked(dgad, "flat.onnx", *order, "--image-size", "4x16")


def nothing_decoded() -> bool:
    return not (cache_dir() / "datasets").exists()


@pytest.mark.parametrize(
    ("axes", "values", "flags", "message"),
    [
        (["N", 3, 6, 10], 180, ("--image-size", "8"), "takes images of 6x10 (height x width), and --image-size says 8"),
        (["N", 3, 6, 10], 180, ("--image-size", "10x6"), "--image-size says 10x6"),
        (["N", 3, 6, "W"], 180, ("--image-size", "8x10"), "takes images of 6xany"),
        (["N", 4, 6, 10], 240, (), "takes images of 4 channels"),
        (["N", 2, 6, 10], 120, (), "takes images of 2 channels"),
        (["N", 3, "H", "W"], 180, (), "leaves its input's shape open"),
        (["N", 60], 60, (), "takes flat images of 60 numbers"),
        (None, 60, (), "leaves its input's shape open"),
        (["N", 1, 60], 60, (), "flat images of 60 numbers"),
        (["N", 3, 6, 10], 180, ("--image-size", "6by10"), "height x width"),
        (["N", 3, 6, 10], 180, ("--resize", "cut"), "unknown way to resize 'cut'"),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_image_is_decoded(
    dgad: Run, axes: Axes, values: int, flags: tuple[str, ...], message: str
) -> None:
    folder("data")
    mean_file("m.onnx", axes, values)
    result = dgad("attack", "--model", "m.onnx", "--dataset", "imagefolder", "--data-dir", "data", *flags)
    refused(result, message)
    assert "attacks on" not in result[2]
    assert nothing_decoded()


def test_other_images_are_refused_before_the_attack_is_announced(dgad: Run) -> None:
    mean_file("m.onnx", ["N", 1, 6, 10], 60)
    result = dgad("attack", "--model", "m.onnx", "--dataset", "digits", "--suite", "blackbox")
    refused(result, "takes images of shape (1, 6, 10)")
    assert "attacks on" not in result[2]


class Mean(nn.Module):
    """As `mean_file`, by a convolution that takes one channel or three."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, channels, 1, 1) / channels)
            self.conv.bias.copy_(torch.tensor([0.35, -0.35]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize("channels", [1, 3])
def test_programs_are_asked_too(dgad: Run, channels: int) -> None:
    folder("data")
    net = Mean(channels).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, torch.zeros(2, channels, 6, 10)).save("net.pt")
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (torch.zeros(2, channels, 6, 10),), dynamic_shapes=dynamic), "net.pt2")
    refused(
        dgad("attack", "--model", "net.pt", "--trust", "--dataset", "imagefolder", "--data-dir", "data"),
        "the shape of its input is unknown",
    )
    assert attacked(dgad, "net.pt", "--trust", "--image-size", "6x10")["dataset"]["shape"] == [channels, 6, 10]
    assert attacked(dgad, "net.pt2", "--trust")["dataset"]["shape"] == [channels, 6, 10]


# The split that is attacked is enough


@pytest.mark.parametrize("parts", [("test",), ("val",), ("",)])
def test_images_to_attack_are_enough(dgad: Run, parts: tuple[str, ...]) -> None:
    folder("data", parts)
    mean_file("grey.onnx", ["N", 1, 6, 10], 60)
    found = attacked(dgad, "grey.onnx")
    assert any("taken as test images" in note for note in found["model"]["notes"]) is (parts == ("",))
    images = ("--dataset", "imagefolder", "--data-dir", "data")
    assert dgad("inspect", "grey.onnx", *images)[0] == 0
    code, _, err = dgad(
        "bench", "grey.onnx", *images, "--robust", "--seconds", "0.01", "--batch", "1", "--eps", "8/255"
    )
    assert code == 0, err
    refused(dgad("train", *images), "has no train/")
    refused(dgad("attack", "--model", "grey.onnx", *images, "--split", "train"), "has no train/")


def test_surrogates_that_are_trained_here_need_training_images(dgad: Run) -> None:
    folder("data", ("test",))
    mean_file("grey.onnx", ["N", 1, 6, 10], 60)
    images = ("--dataset", "imagefolder", "--data-dir", "data")
    code, out, err = dgad("attack", "--model", "grey.onnx", *images, "--attack", "pgd", "--attack", "transfer:pgd")
    assert code == 0, err
    assert "has no training images" in out + err


# Attacks on images that are not square


@pytest.mark.parametrize(
    ("shape", "norm", "eps"),
    [
        ((1, 6, 10), "linf", "8/255"),
        ((3, 10, 6), "linf", "8/255"),
        ((3, 6, 10), "l2", 0.025),
        ((1, 10, 6), "l1", 0.025),
    ],
)
def test_autoattack_finds_what_can_be_counted(dgad: Run, shape: tuple[int, int, int], norm: str, eps: float) -> None:
    """A mean over n numbers moves by eps in Linf, by eps / sqrt(n) in L2 and by eps / n in L1: here 6.4 or 8 levels."""
    channels, height, width = shape
    n = channels * height * width
    folder("data", size=(height, width))
    mean_file("m.onnx", ["N", *shape], n)
    radius = eps if norm == "linf" else float(eps) * (n**0.5 if norm == "l2" else n)
    asked = (
        "--dataset",
        "imagefolder",
        "--data-dir",
        "data",
        "--attack",
        "autoattack",
        "--norm",
        norm,
        "--eps",
        radius,
    )
    code, out, err = dgad("attack", "--model", "m.onnx", *asked, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["dataset"]["shape"] == list(shape)
    assert found["worst_case"][0]["robust"] == 6
    assert found["checks"]["verdict"] in ("high", "warn")


def with_metadata(path: str, **metadata: str) -> None:
    model = onnx.load(path)
    h.set_model_props(model, metadata)
    onnx.save(model, path)


def asked(dgad: Run, *more: object) -> Run:
    """`dgad attack` on what `folder` makes, which answers the clean images by a file at 0.35."""

    def run(*flags: object) -> tuple[int, str, str]:
        usual = ("--dataset", "imagefolder", "--data-dir", "data", "--attack", "fgsm", "--eps", "1/255", "--json")
        return dgad("attack", "--model", "said.onnx", *usual, *more, *flags)

    return run


def correct(result: tuple[int, str, str]) -> tuple[int, int]:
    code, out, err = result
    assert code == 0, err
    clean = json.loads(out)["clean"]
    return clean["correct"], clean["n"]


def test_size_and_names_in_the_metadata_are_defaults(dgad: Run) -> None:
    """The file's outputs are dark and light; metadata that say light and dark make every answer wrong."""
    folder("data")
    mean_file("said.onnx", ["N", 3, "H", "W"], 180)
    with_metadata("said.onnx", imgsz="[6, 10]", names="{0: 'light', 1: 'dark'}")
    attack = asked(dgad)
    assert correct(attack()) == (0, 8)
    _, out, err = attack("--output", "shown")
    assert "read at 6x10 (height x width), as its metadata say" in err
    assert "the file's outputs are taken to be light, dark, as its metadata say" in err
    assert correct(attack("--classes", "dark,light")) == (8, 8)
    with_metadata("said.onnx", imgsz="[6, 10]", names="{0: 'night', 1: 'day'}")
    assert correct(attack()) == (8, 8)
    assert "its metadata call the file's outputs night, day" in attack("--output", "others")[2]
    code, out, _ = dgad("inspect", "said.onnx")
    found = json.loads(out)
    assert (code, found["input_shape"], found["names"]) == (0, [3, 6, 10], ["night", "day"])


def test_image_size_goes_before_the_metadata(dgad: Run) -> None:
    folder("data")
    mean_file("said.onnx", ["N", 3, "H", "W"], 180)
    with_metadata("said.onnx", imgsz="[64, 64]")
    assert asked(dgad)()[0] == 2  # the file multiplies 180 numbers
    assert correct(asked(dgad)("--image-size", "6x10")) == (8, 8)


def test_a_size_in_the_metadata_that_contradicts_the_graph_is_none(dgad: Run) -> None:
    folder("data")
    mean_file("said.onnx", ["N", 3, 6, "W"], 180)
    with_metadata("said.onnx", imgsz="[64, 64]")
    refused(asked(dgad)(), "leaves its input's shape open")


def test_the_number_of_classes_tells_which_output_is_meant(dgad: Run) -> None:
    folder("data")
    mean_file("said.onnx", ["N", 3, 6, 10], 180)
    model = onnx.load("said.onnx")
    model.graph.output[0].name = model.graph.node[-1].output[0] = "third"
    model.graph.initializer.append(nh.from_array(np.float32([[1, 0, 1, 0], [0, 1, 0, 1]]), "twice"))
    model.graph.node.append(h.make_node("MatMul", ["third", "twice"], ["first"]))
    model.graph.output.insert(0, h.make_tensor_value_info("first", 1, ["N", 4]))
    onnx.save(model, "said.onnx")
    assert correct(asked(dgad)()) == (8, 8)
    assert "'third' alone of the outputs that may be the logits gives 2 numbers" in asked(dgad)("--output", "o")[2]
    assert correct(asked(dgad)("--classes", "dark,light,other,none")) == (8, 8)  # of the output of four numbers
    refused(asked(dgad)("--classes", "dark,light,other"), "2 outputs that may be the logits")
    refused(dgad("inspect", "said.onnx"), "2 outputs that may be the logits")


def test_images_of_one_class_are_enough_where_all_are_named(dgad: Run) -> None:
    folder("data", parts=("test",))
    mean_file("said.onnx", ["N", 3, 6, 10], 180)
    for level in LEVELS["dark"]:
        Path("data/test/dark", f"{level}.png").unlink()
    Path("data/test/dark").rmdir()
    code, _, err = asked(dgad)()
    assert code == 2
    assert "found only 'light'" in err
    assert "--classes" in err
    assert correct(asked(dgad)("--classes", "dark,light")) == (4, 4)
    assert "all images are of class 'light'" in asked(dgad)("--classes", "dark,light", "--output", "o")[2]
    code, out, _ = dgad(
        "inspect", "said.onnx", "--dataset", "imagefolder", "--data-dir", "data", "--classes", "dark,light"
    )
    assert (code, "images of one class alone tell no preprocessing" in out) == (0, True)
    with_metadata("said.onnx", names="['dark', 'light']")
    assert correct(asked(dgad)()) == (4, 4)


def test_without_a_dataset_the_flag_alone_says_the_size(dgad: Run) -> None:
    mean_file("m.onnx", ["N", 3, "H", "W"], 180)
    refused(dgad("inspect", "m.onnx"), "leaves its input's shape open")
    code, out, err = dgad("inspect", "m.onnx", "--image-size", "6x10")
    assert code == 0, err
    assert json.loads(out)["input_shape"] == [3, 6, 10]
    mean_file("said.onnx", ["N", 3, 6, 10], 180)
    refused(dgad("inspect", "said.onnx", "--image-size", "10x6"), "takes images of 6x10")


def test_values_that_are_none(dgad: Run) -> None:
    long = dgad("inspect", "m.onnx", "--image-size", "1e300")
    refused(long, "image_size must be from 4 to 1024")
    assert max(map(len, long[2].splitlines())) < 150
    asked = ("attack", "--model", "m.onnx", "--dataset", "imagefolder", "--data-dir", "data")
    refused(dgad(*asked, "--channel-order", ""), "unknown channel order ''")
