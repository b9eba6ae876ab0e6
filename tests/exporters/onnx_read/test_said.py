"""What other exporters write into the metadata of their files, as they write it, and what is not taken for it."""

import json
import warnings

import onnx
import pytest

from exporters.onnx_read.said import names_said, size_said


def file_of(**metadata: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    onnx.helper.set_model_props(proto, metadata)
    return proto


PETS = ("cat", "dog", "Père David's deer")
WRITTEN = {
    "Ultralytics": ("names", str(dict(enumerate(PETS)))),
    "Ultralytics, other quotes": ("names", str({0: "cat", 1: "dog", 2: 'the "deer"'}).replace("deer", "d")),
    "in another order": ("names", str({2: PETS[2], 0: "cat", 1: "dog"})),
    "a list": ("names", str(list(PETS))),
    "JSON": ("names", json.dumps(dict(enumerate(PETS)))),
    "a list in JSON": ("names", json.dumps(PETS, indent=1)),
    "PaddleX": ("character", "\n".join(PETS)),
    "PaddleX, on Windows": ("character", "\r\n".join(PETS) + "\r\n"),
}


@pytest.mark.parametrize(("key", "value"), WRITTEN.values(), ids=WRITTEN)
def test_names_are_read_as_they_are_written(key: str, value: str) -> None:
    wanted = ("cat", "dog", 'the "d"') if 'the "d"' in value else PETS
    assert names_said(file_of(**{key: value}), 3) == wanted


OTHERS = {
    "another number of them": str({0: "cat", 1: "dog"}),
    "a number is missing": str({0: "cat", 1: "dog", 3: "deer"}),
    "a name twice": str(["cat", "dog", "cat"]),
    "an empty name": str(["cat", "", "deer"]),
    "a line that is empty": "cat\n\ndeer",
    "control characters": str(["cat", "dog\x1b[2J", "deer"]),
    "half a list": "['cat', 'dog', 'deer'",
    "a call": "[__import__('os').getcwd(), 'dog', 'deer']",
    "lists in lists": "[" * 100_000 + "]" * 100_000,
    "signs": "[" + "-" * 100_000 + "1]",
    "numbers": "[1, 2, 3]",
    "nothing": "",
    "too much": str(["cat", "dog", "d" * 2**20]),
    "an escape that is none": r"['cat', 'dog', '\deer']",
}


@pytest.mark.parametrize("value", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("key", ["names", "character"])
def test_what_is_no_list_of_so_many_names_says_nothing(key: str, value: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names_said(file_of(**{key: value}), 3) == ()


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("[64, 64]", (64, 64)),
        ("[48, 192]", (48, 192)),
        ("(48, 192)", (48, 192)),
        ("224", (224, 224)),
        ("[224]", (224, 224)),
        ("[3, 224]", None),
        ("[64, 64, 3]", None),
        ("[1, 1000000]", None),
        ("-64", None),
        ("64,64" + " " * 2**19 + "x", None),
        ("None", None),
        ("", None),
    ],
)
def test_the_size_is_height_and_width(value: str, size: tuple[int, int] | None) -> None:
    assert size_said(file_of(imgsz=value)) == size


def test_a_file_that_says_nothing() -> None:
    assert (size_said(file_of()), names_said(file_of(author="somebody"), 2)) == (None, ())
