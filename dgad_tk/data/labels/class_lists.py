"""Lists of class names as people write them: `a,b,c`, a name a line, and the JSON of common tools.

    cat                                     {"0": "cat", "1": "dog"}                        numbers to names
    dog                                     {"cat": 0, "dog": 1}                            names to numbers
                                            {"0": ["n01440764", "tench"], ...}              ImageNet's index
    n01440764 tench, Tinca tinca            {"id2label": {"0": "cat"}, ...}                 config.json of transformers
    0 cat                                   ["cat", "dog"]
    cat,dog

A list may call its classes by several names. Each reading of it is a list of one name a class.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dgad_tk.common import UserError
from dgad_tk.strangers.first_bytes import refuse_placeholder
from dgad_tk.strangers.names import composed, shown

MOST_BYTES = 2**24
"""Of a file of names: that of ImageNet-21k has half a megabyte."""
WHAT = "a list of class names"
_EACH = "each output of the model needs one name, with the number of the output"
LINES = "one name a line, in UTF-8, in the order of the model's outputs"

Readings = list[list[str]]
"""At least one. The first is what the list says by itself, the others are parts of that."""


def read_classes(text: str) -> Readings:
    """The readings of `a,b,c` or, where a file has that name, of the file.

    Raises:
        UserError: the file is no list of names.
        OSError: it cannot be read.
    """
    path = Path(text)
    if is_file(path):
        return readings_of(path)
    names = [name.strip() for name in text.split(",")]
    if len(names) == 1:
        raise UserError(
            f"--classes '{shown(text)}' is neither a file nor a list of names",
            hint=f"for example --classes cat,dog, or a file: {LINES}",
        )
    return [names]


def is_file(path: Path) -> bool:
    """Whether there is such a file; a list of names may be no path at all."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def readings_of(path: Path) -> Readings:
    """The readings of a file of class names.

    Raises:
        UserError: it is no list of names.
        OSError: it cannot be read.
    """
    refuse_placeholder(path, WHAT)
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # which is told as what it is
    if len(content) > MOST_BYTES or (b"\0" in content[:512] and not utf16):
        raise UserError(f"'{path}' is no list of class names", hint=LINES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is not UTF-8, as a list of class names must be", hint=LINES) from None
    if text.lstrip()[:1] in ("{", "["):
        try:
            document = json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            if path.suffix.lower() == ".json":
                raise UserError(f"'{path}' is not JSON: {error}", hint=f"or {LINES}") from None
        else:
            return _of_json(document, path)
    return _of_lines(text, path)


def choose(readings: Readings, classes: Sequence[str]) -> list[str]:
    """The first reading that has all these classes and no name twice; the first of all where none has."""
    wanted = {composed(name) for name in classes}
    for names in readings:
        found = [composed(name) for name in names]
        if wanted.issubset(found) and len(set(found)) == len(found):
            return names
    return readings[0]


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON, of which a dict would keep only the last of equal keys."""


def _of_json(document: Any, path: Path) -> Readings:
    if isinstance(document, _Pairs):
        (inner,) = [value for key, value in document if key == "id2label"][:1] or [document]
        document = _in_number_order(inner, path) if isinstance(inner, _Pairs) else inner
    if isinstance(document, list) and document:
        if all(isinstance(each, str) for each in document):
            return [list(document)]
        widths = {len(each) for each in document if isinstance(each, list) and not isinstance(each, _Pairs)}
        texts = all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in document)
        if texts and len(widths) == 1 and widths != {0}:
            return [list(column) for column in zip(*document, strict=True)]
    raise UserError(
        f"'{path}' is JSON, but no list of class names",
        hint='such as ["cat", "dog"], {"0": "cat", "1": "dog"} or {"cat": 0, "dog": 1}',
    )


def _in_number_order(pairs: _Pairs, path: Path) -> list[Any]:
    """The names of an object that numbers them, in the order of the numbers."""
    by_key = all(re.fullmatch("[0-9]{1,9}", key) for key, _ in pairs)
    by_value = all(isinstance(value, int) and not isinstance(value, bool) for _, value in pairs)
    if by_key and not by_value:
        numbered = [(int(key), value) for key, value in pairs]
    elif by_value:
        numbered = [(value, key) for key, value in pairs]
    else:
        return []
    numbered.sort(key=lambda each: each[0])
    numbers = [number for number, _ in numbered]
    twice = next((one for one, other in pairwise(numbers) if one == other), None)
    if twice is not None:
        raise UserError(f"'{path}' gives the number {twice} to two classes", hint=_EACH)
    if numbers != list(range(len(numbers))):
        raise UserError(
            f"'{path}' numbers {len(numbers)} classes from {numbers[0]} to {numbers[-1]}, not from 0 to "
            f"{len(numbers) - 1}",
            hint=_EACH,
        )
    return [name for _, name in numbered]


def _of_lines(text: str, path: Path) -> Readings:
    lines = [line.strip() for line in re.split("\r\n|\n|\r", text)]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"'{path}' has no class names", hint=LINES)
    if "" in lines:
        raise UserError(f"'{path}' has an empty line, line {lines.index('') + 1}, before its last name", hint=LINES)
    if len(lines) == 1:  # no model has one class: a comma stands between names
        lines = [name.strip() for name in lines[0].split(",")]
    readings = [lines]
    numbered = [re.fullmatch(r"([0-9]{1,9})\s*[\s:,;]\s*(\S.*)", line) for line in lines]
    by_number: Mapping[int, str] = {int(each[1]): each[2].strip() for each in numbered if each}
    if sorted(by_number) == list(range(len(lines))):
        readings.append([by_number[place] for place in range(len(lines))])
    words = [re.fullmatch(r"(n[0-9]{8})\s+(\S.*)", line) for line in readings[-1]]
    if all(words):
        readings += [[each[1] for each in words if each], [each[2] for each in words if each]]
    return readings
