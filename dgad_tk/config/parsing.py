"""Reads a value by the type of its key: for a path the text as it is, for a number a number.

Texts come from `--set`, `DGAD_*` variables, flags and quoted values in files. Other values come from YAML, whose types
follow from how a value looks, not from its key: `data_dir: 2024-05-01` would be a date. A value that YAML may read as
something else is refused, with a hint on what to write.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from dgad_tk.common import UserError, nearest, reason_of
from dgad_tk.strangers.first_bytes import placeholder
from dgad_tk.strangers.number_text import LONGEST, NotANumberError, exact, real, whole

M = TypeVar("M", bound=BaseModel)

NOTHING = ("", "null", "none", "~")
SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

_NUMBERS: dict[Any, tuple[Callable[[str], Any], str]] = {int: (whole, "a whole number"), float: (real, "a number")}

_CALLED = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "keys and values"}
"""Names of YAML's types in messages."""


class TypedKeys(BaseModel):
    """A model that reads each value by the type of its key."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _by_type(cls, values: Any) -> Any:
        return typed(cls, values) if isinstance(values, dict) else values


def validated(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """`values` as a `model`; UserError for an unknown key (the hint is the nearest known one) or a bad value."""
    try:
        return model.model_validate(dict(values))
    except UserError as error:
        raise UserError(f"{where}: {error.message}", hint=error.hint) from None
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            owner: Any = model
            for part in first["loc"][:-1]:
                owner = _plain_type(hints_of(owner)[str(part)])
            hint = nearest(str(first["loc"][-1]), owner.model_fields)
            raise UserError(f"{where}: unknown key '{name}'", hint=hint) from None
        message = first["msg"].removeprefix("Value error, ")
        said = f"{name}: {message}, got {first['input']!r}" if name else message  # a message on several keys names them
        raise UserError(f"{where}: {said}", hint="see `dgad train --help`") from None


def typed(owner: type, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """`values`, with `fitted` applied to each key that the class `owner` annotates. Errors begin with `where`."""
    known, found = hints_of(owner), dict(values)
    try:
        return found | {key: fitted(known[key], found[key], key) for key in found if key in known}
    except UserError as error:
        raise UserError(where + error.message, hint=error.hint) from None


@cache
def hints_of(owner: type) -> dict[str, Any]:
    """The annotations of a class with their metadata, by key."""
    return get_type_hints(owner, include_extras=True)


def fitted(hint: Any, value: Any, what: str) -> Any:
    """A value from Python or YAML for a key of type `hint`: texts are read; other values are left to the model.

    Raises:
        UserError: the key takes text and YAML read something else, the key takes a number and YAML read a boolean, or
            a text is not a value of this type.
    """
    base = _plain_type(hint)
    if base is Any or (isinstance(value, str) and _is_textual(base)):
        return value
    if isinstance(value, str):
        if NoneType in get_args(hint) and value.lower() == "none":
            raise UserError(f"{what}: {value} is text to YAML", hint="write null for no value")
        return read_text(hint, value, what)
    if _is_textual(base) and type(value) in _CALLED:
        shown = str(value).lower() if isinstance(value, bool) else value
        hint_text = "put it in quotes" if isinstance(value, list | dict) else f"put it in quotes: {what}: '{shown}'"
        raise UserError(f"{what} must be text, and YAML takes {shown} for {_CALLED[type(value)]}", hint=hint_text)
    if isinstance(value, bool) and base in (int, float):
        raise UserError(f"{what} must be a number, got {str(value).lower()}", hint="write the number")
    if get_origin(base) is tuple and isinstance(value, list | tuple):
        return tuple(fitted(get_args(base)[0], part, what) for part in value)
    return value


def read_text(hint: Any, text: str, what: str) -> Any:
    """A text as a value of type `hint`. A key of type text or path takes it unchanged.

    Args:
        hint: annotation of the key. Its only union is with None.
        what: name of the key in an error, such as `--set lr` or `DGAD_LR`.

    Raises:
        UserError: it is not such a value, or may be several.
    """
    base = _plain_type(hint)
    if base is not hint and any(isinstance(each, BeforeValidator) for each in get_args(hint)):
        return text  # pydantic's validator reads it
    if NoneType in get_args(hint) and (not text if _is_textual(base) else text.strip().lower() in NOTHING):
        return None
    if base is bool:
        if text.strip().lower() not in SWITCHES:
            raise UserError(f"{what} must be true or false, got '{text}'", hint="write true or false")
        return SWITCHES[text.strip().lower()]
    if base in _NUMBERS:
        read, expected = _NUMBERS[base]
        try:
            return read(text)
        except NotANumberError as error:
            hint_text = error.hint or "for example 10, 0.05 or 1e-3"
            raise UserError(f"{what} must be {expected}, got '{text[:LONGEST]}'", hint=hint_text) from None
    if get_origin(base) is tuple:
        return tuple(read_text(get_args(base)[0], part, what) for part in _parts(text))
    if get_origin(base) is dict or (isinstance(base, type) and issubclass(base, BaseModel)):
        return parse_yaml(text, what)
    return _guessed(text) if base is Any else text


def _is_textual(base: Any) -> bool:
    return base in (str, Path) or get_origin(base) is Literal


def _plain_type(hint: Any) -> Any:
    """`X` in `X | None` and in `Annotated[X, ...]`."""
    while get_origin(hint) is Annotated or NoneType in get_args(hint):
        hint = next(each for each in get_args(hint) if each is not NoneType)
    return hint


def _parts(text: str) -> list[str]:
    """The texts between commas, with or without brackets around all."""
    text = text.strip()
    if (text[:1], text[-1:]) in {("[", "]"), ("(", ")")}:
        text = text[1:-1].strip().removesuffix(",")
    return text.split(",") if text else []


def _guessed(text: str) -> Any:
    """A text for a key of any type: a number or a boolean where it is one."""
    for read in (whole, real):
        try:
            return read(text)
        except NotANumberError:
            continue
    return {"true": True, "false": False}.get(text, text)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file is missing, not in UTF-8, not YAML, not a mapping, holds a key twice, or a value that YAML
            does not read as it looks.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read config '{path}': {error.strerror}", hint="give --config a YAML file") from None
    if content and (found := placeholder(content[:512])):
        raise UserError(f"'{path}' is {found[0]}, not a config", hint=found[1])
    if b"\0" in content[:1024]:
        raise UserError(
            f"'{path}' is in UTF-16 or UTF-32, or no text",
            hint="save it as UTF-8 (in PowerShell: Out-File -Encoding utf8)",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"'{path}' is not in UTF-8: line {line}", hint="save it as UTF-8") from None
    return parse_yaml(text, f"'{path}'")


def parse_yaml(text: str, what: str) -> dict[str, Any]:
    """The mapping in a text such as `{steps: 7, eps: 8/255}`; `what` names it in an error."""
    hint = "one `key: value` a line; text with `: ` or ` #` in it goes in quotes"
    try:
        content = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except _TrapError as error:
        raise UserError(f"{what}, line {error.line}: {error}", hint=error.hint) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # nested too deep; a tag on a wrong value
        raise UserError(f"{what} is not YAML that can be read: {reason_of(error)}", hint=hint) from None
    if not isinstance(content, dict):
        raise UserError(f"{what} must hold keys and values, got {type(content).__name__}", hint="such as `epochs: 30`")
    return content


def written_yaml(values: dict[str, Any]) -> str:
    """Values as YAML that every reader reads back the same, in the order given."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _TrapError(Exception):
    """A value that YAML may read otherwise than its writer meant."""

    def __init__(self, message: str, hint: str, node: yaml.Node) -> None:
        super().__init__(message)
        self.hint, self.line = hint, node.start_mark.line + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader (YAML 1.1) without its surprises: dates, base 60, octal numbers."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        text, kind = node.value, node.tag.removeprefix("tag:yaml.org,2002:")
        quotes = f"to keep it as text, put it in quotes: '{text}'"
        if kind == "timestamp":
            raise _TrapError(f"YAML takes {text} for a date", quotes, node)
        if kind in ("int", "float") and ":" in text:
            raise _TrapError(f"YAML takes {text} for a number to base 60", f"write a plain number; {quotes}", node)
        if kind == "int" and re.fullmatch("[+-]?0[0-7_]+", text):
            number, plain = (int(text.replace("_", ""), base) for base in (8, 10))
            raise _TrapError(f"YAML takes {text} for {number}", f"write {plain} or {number}; {quotes}", node)
        if text == "None" and isinstance(node, yaml.ScalarNode) and node.style is None:
            hint = "write null for no value, or 'None' in quotes for the text"
            raise _TrapError("None is text to YAML", hint, node)
        return super().construct_scalar(node)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping whose keys are text and given once. PyYAML itself would keep the last of two equal keys."""
    names = set()
    for key, _ in node.value:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list"
            raise _TrapError(f"the key {shown} is no text to YAML", "put it in quotes if it is a name", key)
        if key.value in names:
            raise _TrapError(f"the key '{key.value}' is given twice", "give it once: the first would be lost", key)
        names.add(key.value)
    return loader.construct_mapping(node, deep=True)  # deep, so that a mapping that holds itself is refused


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper. Text that another reader may take for a number or for null gets quotes."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        exact(text)
        quoted = True
    except NotANumberError as error:
        quoted = bool(error.hint) or text == "None"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if quoted else None)


_Dumper.add_representer(str, _represent_text)
