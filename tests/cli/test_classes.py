"""`--classes`: files whose outputs are in another order than the class folders, with and without images for each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as h
from onnx import numpy_helper as nh
from PIL import Image
from shared import Run, refused

LEVELS = [20 + 21 * k for k in range(11)]
COUNTED = [str(k) for k in range(11)]
IMAGES = ["--dataset", "imagefolder", "--data-dir", "photos", "--image-size", "8"]
BENCH = ["bench", "file.onnx", "--seconds", "0.01", "--batch", "1", "--robust", "--eps", "0.01", *IMAGES, "--json"]
EPS = ["--eps", "0.03", "--attack", "pgd", "--json"]


def folders(names: list[str]) -> None:
    """A grey level per class, in five shades."""
    for part in ("train", "test"):
        for name, level in zip(names, LEVELS, strict=False):
            Path("photos", part, name).mkdir(parents=True)
            for more in range(5):
                Image.new("RGB", (8, 8), (level + more,) * 3).save(f"photos/{part}/{name}/{more}.png")


def nearest_level(path: str, levels: list[int | None]) -> None:
    """An ONNX file whose output k is largest for images near level k; None for a class that is never the answer."""
    known = np.array([level is not None for level in levels])
    c = np.array([0 if level is None else level / 2.55 for level in levels])
    w = np.where(known[:, None], np.repeat(c[:, None] * 30 / 192, 192, axis=1), 0)
    b = np.where(known, -30 * c * c / 200, -1e5)
    nodes = [h.make_node("Flatten", ["x"], ["f"]), h.make_node("Gemm", ["f", "w", "b"], ["z"], transB=1)]
    ends = [h.make_tensor_value_info("x", 1, ["N", 3, 8, 8])], [h.make_tensor_value_info("z", 1, ["N", len(c)])]
    weights = [nh.from_array(np.float32(w), "w"), nh.from_array(np.float32(b), "b")]
    model = h.make_model(h.make_graph(nodes, "g", *ends, weights), opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def attacked(dgad: Run, *arguments: str) -> tuple[dict[str, Any], str]:
    code, out, err = dgad("attack", *IMAGES, *EPS, *arguments)
    assert code == 0, err
    return json.loads(out), err


def doubt(found: dict[str, Any]) -> str:
    return " ".join(each["detail"] for each in found["checks"]["items"] if each["name"] == "order of classes")


@pytest.mark.parametrize("prefix", ["", "class_"])
def test_numbers_in_names(dgad: Run, prefix: str) -> None:
    """The order by number is offered before the attack and in the doubt, and is right."""
    names = [prefix + each for each in COUNTED]
    folders(names)
    nearest_level("file.onnx", list(LEVELS))
    found, err = attacked(dgad, "--model", "file.onnx")
    asked = f"--classes {','.join(names)}"
    assert f"note: file.onnx: the classes are sorted as text, so that '{prefix}10' is label 2" in err
    assert asked in err
    assert asked in doubt(found)
    assert found["clean"]["correct"] < 55

    named, err = attacked(dgad, "--model", "file.onnx", *asked.split(), "--output", "named")
    assert named["clean"]["correct"] == 55
    assert named["dataset"]["classes"] == names
    assert named["dataset"]["sha256"] != found["dataset"]["sha256"]
    assert "sorted as text" not in err
    assert not doubt(named)
    labels = np.load("named/samples.npz")["label"]
    assert sorted(labels.tolist()) == np.repeat(np.arange(11), 5).tolist()


def test_a_class_in_front_and_one_behind(dgad: Run) -> None:
    names = ["ash", "birch", "maple"]
    folders(names)
    nearest_level("file.onnx", [None, *LEVELS[:3]])
    found, _ = attacked(dgad, "--model", "file.onnx")
    assert "one too high" in doubt(found)
    assert "--classes background,ash,birch,maple" in doubt(found)
    Path("names.txt").write_bytes("\ufeffbackground\r\nash\r\nbirch\r\nmaple\r\n\r\n".encode())
    named, err = attacked(dgad, "--model", "file.onnx", "--classes", "names.txt")
    assert (named["clean"]["correct"], named["dataset"]["classes"]) == (15, ["background", *names])
    assert any("as --classes says" in note for note in named["model"]["notes"])
    assert "classes apart" not in err


def test_several_models_and_a_surrogate_that_is_trained_on_the_spot(dgad: Run, tmp_path: Path) -> None:
    names = ["dark", "middle", "light"]
    folders(names)
    for name in ("one", "two"):
        nearest_level(f"{name}.onnx", [*LEVELS[:3]])
    code, out, err = dgad(
        "attack", *IMAGES, "--eps", "0.03", "--attack", "transfer:pgd", "--json", "--model", "one.onnx",
        "--model", "two.onnx", "--surrogate", "two.onnx", "--classes", ",".join(names),
    )  # fmt: skip
    assert code == 0, err
    for found in json.loads(out):
        assert found["clean"]["correct"] == 15
        assert found["dataset"]["classes"] == names


def test_a_given_order_is_another_question(dgad: Run) -> None:
    """What was kept under one order is not taken for another's."""
    folders(["ash", "birch"])
    nearest_level("file.onnx", LEVELS[:2])
    first, _ = attacked(dgad, "--model", "file.onnx", "--output", "same")
    second, _ = attacked(dgad, "--model", "file.onnx", "--output", "same", "--classes", "birch,ash")
    assert (first["clean"]["correct"], second["clean"]["correct"]) == (10, 0)
    assert "--classes ash,birch" in " ".join(each["detail"] for each in second["checks"]["items"])


def test_what_the_flag_may_not_say(dgad: Run) -> None:
    folders(["ash", "birch", "maple"])
    nearest_level("file.onnx", [*LEVELS[:3]])
    attack = ["attack", *IMAGES, "--model", "file.onnx", "--classes"]
    for text, message in (
        ("ash,birch", "has no 'maple', a class of imagefolder"),
        ("ash,birch,maple,oak", "gives 4 names, 'file.onnx' has 3 outputs"),
        ("ash,birch,maple,ash", "names 'ash' twice"),
        ("ash,,maple", "empty name, the one of output 1"),
        ("names.txt", "neither a file nor a list of names"),
    ):
        refused(dgad(*attack, text), message)
    Path("damaged.txt").write_bytes(b"ash\nbirch\nm\xe4ple")
    refused(dgad(*attack, "damaged.txt"), "not UTF-8")
    refused(dgad("bench", "file.onnx", *IMAGES, "--classes", "maple,birch,ash"), "are for --robust")
    refused(dgad("inspect", "file.onnx", "--classes", "a,b"), "gives 2 names, 'file.onnx' has 3 outputs")
    refused(dgad("inspect", "file.onnx", *IMAGES, "--classes", "a,b,c"), "has no 'ash'")


def test_inspect_takes_names_without_images(dgad: Run) -> None:
    nearest_level("file.onnx", [*LEVELS[:3]])
    code, out, err = dgad("inspect", "file.onnx", "--classes", "a,b,c")
    assert code == 0, err
    assert json.loads(out)["classes"] == 3


def test_robustness_in_bench(dgad: Run) -> None:
    folders(["maple", "birch", "ash"])
    nearest_level("file.onnx", [*LEVELS[:3]])
    for flags, clean in (([], 5), (["--classes", "maple,birch,ash"], 15)):
        code, out, err = dgad(*BENCH, *flags)
        assert code == 0, err
        assert json.loads(out)["files"][0]["robust"]["clean_accuracy"] == pytest.approx(clean / 15)


def test_one_number_per_image(dgad: Run) -> None:
    """A file of two classes that gives one number, and folders of two classes and of three."""
    folders(["dark", "light"])
    nodes = [h.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2, 3], keepdims=0)]
    nodes += [h.make_node("Sub", ["m", "c"], ["d"]), h.make_node("Mul", ["d", "k"], ["z"])]
    nodes += [h.make_node("Sigmoid", ["z"], ["p"])]
    weights = [nh.from_array(np.float32(32 / 255), "c"), nh.from_array(np.float32(100), "k")]
    ends = [h.make_tensor_value_info("x", 1, ["N", 3, 8, 8])], [h.make_tensor_value_info("p", 1, ["N"])]
    model = h.make_model(h.make_graph(nodes, "g", *ends, weights), opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "file.onnx")
    found, err = attacked(dgad, "--model", "file.onnx")
    assert found["clean"]["correct"] == 10
    assert found["dataset"]["classes"] == ["dark", "light"]
    assert "class 1 is 'light', class 0 is 'dark'; if it is the other way: --classes light,dark" in err
    assert any("probability of class 1" in note for note in found["model"]["notes"])
    turned, err = attacked(dgad, "--model", "file.onnx", "--classes", "light,dark")
    assert turned["clean"]["correct"] == 0
    assert "class 1 is 'dark', class 0 is 'light'" in err
    for part in ("train", "test"):
        Path("photos", part, "white").mkdir()
        Image.new("RGB", (8, 8), (255,) * 3).save(f"photos/{part}/white/0.png")
    refused(
        dgad("attack", *IMAGES, "--model", "file.onnx"), "gives one number per image, which tells two classes apart"
    )


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_order_of_channels(dgad: Run, order: str) -> None:
    """In results, in the note, on the page, in `bench --robust`, and in the doubt where it is wrong."""
    for part in ("train", "test"):
        for name, colour in (("blue", (0, 0, 1)), ("green", (0, 1, 0)), ("red", (1, 0, 0))):
            Path("photos", part, name).mkdir(parents=True)
            for level in (90, 120, 150, 180, 210, 240):
                Image.new("RGB", (8, 8), tuple(level * c for c in colour)).save(f"photos/{part}/{name}/{level}.png")
    own = np.eye(3) if order == "bgr" else np.eye(3)[:, ::-1]
    nodes = [h.make_node("Flatten", ["x"], ["f"]), h.make_node("Gemm", ["f", "w"], ["z"], transB=1)]
    ends = [h.make_tensor_value_info("x", 1, ["N", 3, 8, 8])], [h.make_tensor_value_info("z", 1, ["N", 3])]
    weights = [nh.from_array(np.float32(np.repeat(own, 64, axis=1) / 64), "w")]
    model = h.make_model(h.make_graph(nodes, "g", *ends, weights), opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "file.onnx")
    right, err = attacked(dgad, "--model", "file.onnx", "--channel-order", order, "--output", "right")
    assert right["clean"]["correct"] == 18
    assert right["model"]["preprocessing"]["channel_order"] == order
    assert ("blue, green, red" in err) == (order == "bgr")
    assert ("blue, green, red" in Path("right", "report.html").read_text()) == (order == "bgr")
    other, way_out = ("bgr", "leave out --channel-order bgr") if order == "rgb" else ("rgb", "(--channel-order bgr)")
    wrong, _ = attacked(dgad, "--model", "file.onnx", "--channel-order", other)
    assert wrong["clean"]["correct"] == 6
    assert way_out in " ".join(each["detail"] for each in wrong["checks"]["items"] if each["name"] == "channels")
    code, out, err = dgad(*BENCH, "--channel-order", order)
    assert code == 0, err
    assert json.loads(out)["files"][0]["robust"]["clean_accuracy"] == 1
    refused(dgad("attack", *IMAGES, "--model", "file.onnx", "--channel-order", "gbr"), "unknown channel order 'gbr'")
