"""A value by the type of the key that it was given for: a path is the text that stands there, a number is a number.

Texts come from `--set`, from `DGAD_*` variables and, in quotes, from files; other values from YAML, whose own types
follow from how a value looks and not from what it is for.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator

from dgad_tk.common import UserError
from dgad_tk.number_text import NotANumberError, real, whole
from dgad_tk.strict_yaml import mapping_of

NOTHING = ("", "null", "none", "~")
SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class _Kind:
    """What a type hint asks for: `base` is one of str, bool, int, float, tuple, dict, or None for anything."""

    base: type | None
    optional: bool = False
    reads_itself: bool = False
    element: Any = None


def read_text(hint: Any, text: str, what: str) -> Any:
    """A text as a value of the type `hint`; text and path keys take it as it stands.

    Args:
        hint: annotation of the key.
        text: as given.
        what: names the key in an error, as it was given: `--set lr`, `DGAD_LR`.

    Raises:
        UserError: it is none, or may be several.
    """
    kind = _kind(hint)
    if kind.reads_itself:
        return text
    if kind.optional and (not text if kind.base is str else text.strip().lower() in NOTHING):
        return None
    if kind.base is bool:
        if text.strip().lower() not in SWITCHES:
            raise UserError(f"{what} must be true or false, got '{text}'", hint="write true or false")
        return SWITCHES[text.strip().lower()]
    if kind.base is int:
        return _number(whole, "a whole number", text, what)
    if kind.base is float:
        return _number(real, "a number", text, what)
    if kind.base is tuple:
        return tuple(read_text(kind.element, part, what) for part in _parts(text))
    if kind.base is dict:
        return mapping_of(text, what)
    return text if kind.base is str else _plain(text)


def fitted(hint: Any, value: Any, what: str) -> Any:
    """A value from Python or YAML for a key of type `hint`: texts are read, and what YAML took for something else than
    the key wants is refused. Of the rest the model judges itself.

    Raises:
        UserError: text that YAML took for a number or a switch, or a switch in the place of a number.
    """
    kind = _kind(hint)
    if kind.base is None or value is None:
        return value
    if isinstance(value, str):
        return value if kind.base is str else read_text(hint, value, what)
    if kind.base is str and isinstance(value, bool | int | float | list | dict):
        shown = str(value).lower() if isinstance(value, bool) else value
        hint_text = f"put it in quotes: {what}: '{shown}'" if not isinstance(value, list | dict) else "put it in quotes"
        raise UserError(f"{what} must be text, and YAML takes {shown} for {_called(value)}", hint=hint_text)
    if isinstance(value, bool) and kind.base in (int, float):
        raise UserError(f"{what} must be a number, got {str(value).lower()}", hint="write the number")
    if kind.base is tuple and isinstance(value, list | tuple):
        return tuple(fitted(kind.element, part, what) for part in value)
    return value


def typed(owner: type, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """`values` with each known key's `fitted` to the annotation that `owner` has for it.

    Args:
        owner: a pydantic model or a dataclass.
        where: stands before the key in an error, such as the name of a file and a colon.

    Raises:
        UserError: as `fitted`.
    """
    known = hints_of(owner)
    found = {}
    for key, value in values.items():
        try:
            found[key] = fitted(known[key], value, key) if key in known else value
        except UserError as error:
            raise UserError(where + error.message, hint=error.hint) from None
    return found


@cache
def hints_of(owner: type) -> dict[str, Any]:
    """The annotations of a class with their metadata, by key."""
    return get_type_hints(owner, include_extras=True)


def _kind(hint: Any) -> _Kind:
    if get_origin(hint) is Annotated:
        base, *metadata = get_args(hint)
        found = _kind(base)
        own = found.reads_itself or any(isinstance(each, BeforeValidator) for each in metadata)
        return _Kind(found.base, found.optional, own, found.element)
    if get_origin(hint) in (Union, types.UnionType):
        others = [each for each in get_args(hint) if each is not type(None)]
        if len(others) != 1:
            return _Kind(None)
        found = _kind(others[0])
        return _Kind(found.base, len(others) < len(get_args(hint)), found.reads_itself, found.element)
    if get_origin(hint) is Literal:
        return _Kind(str if all(isinstance(each, str) for each in get_args(hint)) else None)
    if get_origin(hint) is tuple:
        return _Kind(tuple, element=get_args(hint)[0])
    if get_origin(hint) is dict or (isinstance(hint, type) and issubclass(hint, BaseModel)):
        return _Kind(dict)
    if isinstance(hint, type) and issubclass(hint, Path):
        return _Kind(str)
    return _Kind(hint if hint in (str, bool, int, float) else None)


def _number(read: Callable[[str], Any], expected: str, text: str, what: str) -> Any:
    try:
        return read(text)
    except NotANumberError as error:
        raise UserError(
            f"{what} must be {expected}, got '{text}'", hint=error.hint or "for example 10, 0.05 or 1e-3"
        ) from None


def _parts(text: str) -> list[str]:
    """What stands between commas, with brackets around it or without."""
    text = text.strip()
    if (text[:1], text[-1:]) in {("[", "]"), ("(", ")")}:
        text = text[1:-1].strip().removesuffix(",")
    return text.split(",") if text else []


def _plain(text: str) -> Any:
    """Of a key that takes anything: a number where it is one."""
    for read in (whole, real):
        try:
            return read(text)
        except NotANumberError:
            continue
    return SWITCHES.get(text, text) if text in ("true", "false") else text


def _called(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "keys and values"}
    return names[type(value)]
