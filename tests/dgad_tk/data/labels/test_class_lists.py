"""Lists of class names in the forms that people have them in, and files that are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from dgad_tk.common import UserError
from dgad_tk.data.labels.class_lists import MOST_BYTES, choose, read_classes

PETS = ["cat", "dog", "fox"]


def read(content: str | bytes, folder: Path, name: str = "names.txt") -> list[list[str]]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_classes(str(path))


@pytest.mark.parametrize(
    "content",
    [
        "cat\ndog\nfox",
        "cat\ndog\nfox\n\n \n",
        "cat\r\ndog\r\nfox\r\n",
        "cat\rdog\rfox",
        "cat, dog,fox\n",
        "\ufeffcat\r\ndog\t\r\n  fox\r\n",
        '["cat", "dog", "fox"]',
        '{"0": "cat", "1": "dog", "2": "fox"}',
        '{"2": "fox", "0": "cat", "1": "dog"}',
        '{"dog": 1, "cat": 0, "fox": 2}',
        '\ufeff{"architectures": [], "id2label": {"0": "cat", "1": "dog", "2": "fox"}, "label2id": {"cat": 0}}',
    ],
)
def test_one_name_a_class(content: str, tmp_path: Path) -> None:
    assert read(content, tmp_path) == [PETS]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"0": ["n01", "cat"], "1": ["n02", "dog"], "2": ["n03", "fox"]}),
        json.dumps([["n01", "cat"], ["n02", "dog"], ["n03", "fox"]]),
        "0 cat\n1 dog\n2 fox",
        "0: cat\n1: dog\n2: fox",
        "0,cat\n1,dog\n2,fox\n",
        "2\tfox\n0\tcat\n1\tdog\n",
        "n00000001 cat\nn00000002 dog\nn00000003 fox",
        "0 n00000001 cat\n1 n00000002 dog\n2 n00000003 fox",
    ],
)
def test_several_names_a_class(content: str, tmp_path: Path) -> None:
    readings = read(content, tmp_path)
    assert len(readings) > 1
    assert readings[0] != PETS
    assert choose(readings, ["fox", "cat"]) == PETS


def test_imagenet_goes_by_its_folders_or_its_words(tmp_path: Path) -> None:
    index = {"0": ["n01440764", "tench"], "1": ["n02012849", "crane"], "2": ["n03126707", "crane"]}
    readings = read(json.dumps(index), tmp_path, "imagenet_class_index.json")
    assert choose(readings, ["n03126707"]) == ["n01440764", "n02012849", "n03126707"]
    # Two classes of one name cannot be told by it.
    assert choose(readings, ["tench", "crane"]) == readings[0]


def test_names_that_look_like_numbers_are_names(tmp_path: Path) -> None:
    assert read("0\n1\n10\n2", tmp_path) == [["0", "1", "10", "2"]]
    assert read('{"0": 0, "1": 1, "10": 2, "2": 3}', tmp_path) == [["0", "1", "10", "2"]]
    readings = read("0 cat\n1 dog", tmp_path)
    assert choose(readings, ["0 cat", "1 dog"]) == ["0 cat", "1 dog"]
    assert read("1 cat\n2 dog", tmp_path) == [["1 cat", "2 dog"]]  # numbered from 1: is there a class 0?


def test_a_list_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_classes("cat, dog ,fox") == [PETS]
    assert read_classes("a,,b") == [["a", "", "b"]]
    assert read_classes(",".join(["x" * 40] * 200))[0][0] == "x" * 40  # longer than a path may be
    (tmp_path / "a,b").write_text("cat\ndog\nfox")
    assert read_classes("a,b") == [PETS]
    for text in ("names.txt", "", ".", "a\0b"):
        with pytest.raises(UserError, match="neither a file nor a list") as caught:
            read_classes(text)
        assert "\0" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "an empty file"),
        ("\n\n", "no class names"),
        ("cat\n\ndog", "empty line, line 2"),
        (b"k\xe4se\nbrot", "not UTF-8"),
        ("cat\ndog".encode("utf-16"), "not UTF-8"),
        (b"\x08\x07\x12\0\0\1" * 9, "no list of class names"),
        (b"x" * (MOST_BYTES + 1), "no list of class names"),
        ("<!DOCTYPE html><html>", "an HTML page"),
        ("{}", "no list of class names"),
        ("[]", "no list of class names"),
        ('["cat", 3]', "no list of class names"),
        ('[["a", "b"], ["c"]]', "no list of class names"),
        ('{"cat": 1, "dog": 2}', "numbers 2 classes from 1 to 2, not from 0 to 1"),
        ('{"0": "cat", "2": "dog"}', "numbers 2 classes from 0 to 2"),
        ('{"cat": 0, "dog": 0}', "gives the number 0 to two classes"),
        ('{"0": "cat", "0": "dog", "2": "cow"}', "gives the number 0 to two classes"),
        ('{"cat": true, "dog": false}', "no list of class names"),
        ('{"0": {"a": "b"}, "1": {"a": "b"}}', "no list of class names"),
        ('{"' + "9" * 5000 + '": "cat"}', "no list of class names"),
        ('{"a": 1', "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_files_that_are_no_list(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(content, tmp_path, "names.json")
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_list_may_begin_with_a_bracket(tmp_path: Path) -> None:
    assert read("[none]\ncat", tmp_path) == [["[none]", "cat"]]
