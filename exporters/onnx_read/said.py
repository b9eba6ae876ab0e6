"""What the metadata of a stranger's ONNX file say of its images and classes. They are defaults: a user knows better.

Some exporters write down what the graph does not say:

    imgsz       [64, 64]                Ultralytics: height and width
    names       {0: 'cat', 1: 'dog'}    Ultralytics: classes by the numbers of their outputs
    character   0\\n90\\n180\\n270         PaddleX and RapidOCR: a class a line

Names are read as a list or an object of Python or JSON, or as lines. What is of another form says nothing.
"""

import ast
import re

import onnx

from dgad_tk.data.images.size import LARGEST, SMALLEST, Size
from dgad_tk.strangers.names import composed, is_utf8, shown

SIZES = ("imgsz",)
NAMES = ("names", "character")
MOST_CHARACTERS = 2**20
"""Of a value that is read: the names of ImageNet-21k have half a megabyte."""

LONGEST_SIZE = 40
"""Characters of a size that is read: its pattern takes the square of their number at worst."""

_NUMBER = "([0-9]{1,4})"
_SIDES = re.compile(rf"[\[(]?\s*{_NUMBER}\s*(?:,\s*{_NUMBER}\s*,?\s*)?[\])]?")
_ESCAPED = r"\\[\\'\"]|\\x[0-9a-f]{2}|\\u[0-9a-fA-F]{4}"
_TEXT = rf"'(?:[^'\\\n]|{_ESCAPED})*'|\"(?:[^\"\\\n]|{_ESCAPED})*\""
_ENTRY = re.compile(rf"\s*(?:['\"]?([0-9]{{1,9}})['\"]?\s*:\s*)?({_TEXT})\s*(?:,\s*|$)")


def size_said(proto: onnx.ModelProto) -> Size | None:
    """(H, W) of its images, where its metadata say it. One number is a square."""
    for value in _values(proto, SIZES):
        found = _SIDES.fullmatch(value.strip()) if len(value) <= LONGEST_SIZE else None
        if found is not None:
            height, width = int(found[1]), int(found[2] or found[1])
            if min(height, width) >= SMALLEST and max(height, width) <= LARGEST:
                return height, width
    return None


def names_said(proto: onnx.ModelProto, classes: int) -> tuple[str, ...]:
    """The names of its outputs in their order, where its metadata have so many, each of its own; else none."""
    for value in _values(proto, NAMES):
        names = tuple(map(composed, _entries(value.strip()) or map(str.strip, value.strip().split("\n"))))
        if len(set(names)) == len(names) == classes and all(map(_is_name, names)):
            return names
    return ()


def _values(proto: onnx.ModelProto, keys: tuple[str, ...]) -> list[str]:
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    return [entries[key] for key in keys if 0 < len(entries.get(key, "")) <= MOST_CHARACTERS]


def _entries(text: str) -> list[str]:
    """The texts of a list, or of an object that numbers them, by their numbers; none if it is neither."""
    if (text[:1], text[-1:]) not in {("[", "]"), ("(", ")"), ("{", "}")}:
        return []
    body, at = text[1:-1], 0
    found: list[tuple[int, str]] = []
    while at < len(body):
        entry = _ENTRY.match(body, at)
        if entry is None:
            return []
        number = len(found) if entry[1] is None else int(entry[1])
        found.append((number, str(ast.literal_eval(entry[2]))))  # of one quoted text, never of what holds others
        at = entry.end()
    found.sort()
    return [name for _, name in found] if [number for number, _ in found] == list(range(len(found))) else []


def _is_name(name: str) -> bool:
    return bool(name) and is_utf8(name) and shown(name) == name
