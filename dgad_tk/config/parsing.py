"""A value by the type of the key that it was given for: a path is the text that stands there, a number is a number.

Texts come from `--set`, from `DGAD_*` variables, from flags and, in quotes, from files. Other values come from YAML,
whose own types follow from how a value looks and not from what it is for: `data_dir: 2024-05-01` would be a date.
What a reader of YAML may take for something else is refused, with what to write instead.
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

_CALLED = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "keys and values"}
"""What YAML takes a value for."""


class TypedKeys(BaseModel):
    """Keys whose values are read by the type of the key, whoever wrote them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _by_type(cls, values: Any) -> Any:
        return typed(cls, values) if isinstance(values, dict) else values


def validated(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """`values` as a `model`.

    Raises:
        UserError: an unknown key (with the nearest known one) or a value out of range.
    """
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
        said = f"{name}: {message}, got {first['input']!r}" if name else message  # of several keys, it names them
        raise UserError(f"{where}: {said}", hint="see `dgad train --help`") from None


def typed(owner: type, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """`values` with each known key's value `fitted` to the annotation that `owner` has for it.

    Args:
        owner: a pydantic model or a dataclass.
        where: stands before the key in an error, such as the name of a file and a colon.

    Raises:
        UserError: as `fitted`.
    """
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
    """A value from Python or YAML for a key of type `hint`: texts are read, and what YAML took for something else than
    the key wants is refused. The rest the model judges.

    Raises:
        UserError: text that YAML took for a number or a switch, a switch in the place of a number, or a text that is
            no value of this type.
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
    """A text as a value of the type `hint`. A key of type text or path takes it as it stands.

    Args:
        hint: annotation of the key. The only unions are those with None.
        text: as given.
        what: names the key in an error, as it was given: `--set lr`, `DGAD_LR`.

    Raises:
        UserError: it is no such value, or may be several.
    """
    base = _plain_type(hint)
    if base is not hint and any(isinstance(each, BeforeValidator) for each in get_args(hint)):
        return text  # this one reads it
    if NoneType in get_args(hint) and (not text if _is_textual(base) else text.strip().lower() in NOTHING):
        return None
    if base is bool:
        if text.strip().lower() not in SWITCHES:
            raise UserError(f"{what} must be true or false, got '{text}'", hint="write true or false")
        return SWITCHES[text.strip().lower()]
    if base is int:
        return _number(whole, "a whole number", text, what)
    if base is float:
        return _number(real, "a number", text, what)
    if get_origin(base) is tuple:
        return tuple(read_text(get_args(base)[0], part, what) for part in _parts(text))
    if get_origin(base) is dict or (isinstance(base, type) and issubclass(base, BaseModel)):
        return parse_yaml(text, what)
    return _guessed(text) if base is Any else text


def _is_textual(base: Any) -> bool:
    return base in (str, Path) or get_origin(base) is Literal


def _plain_type(hint: Any) -> Any:
    """`X` of `X | None` and of `Annotated[X, ...]`."""
    while get_origin(hint) is Annotated or NoneType in get_args(hint):
        hint = next(each for each in get_args(hint) if each is not NoneType)
    return hint


def _number(read: Callable[[str], Any], expected: str, text: str, what: str) -> Any:
    try:
        return read(text)
    except NotANumberError as error:
        hint = error.hint or "for example 10, 0.05 or 1e-3"
        raise UserError(f"{what} must be {expected}, got '{text[:LONGEST]}'", hint=hint) from None


def _parts(text: str) -> list[str]:
    """What stands between commas, with brackets around it or without."""
    text = text.strip()
    if (text[:1], text[-1:]) in {("[", "]"), ("(", ")")}:
        text = text[1:-1].strip().removesuffix(",")
    return text.split(",") if text else []


def _guessed(text: str) -> Any:
    """A text for a key that takes anything: a number or a switch where it is one."""
    for read in (whole, real):
        try:
            return read(text)
        except NotANumberError:
            continue
    return {"true": True, "false": False}.get(text, text)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping.

    Raises:
        UserError: missing, not text in UTF-8, not YAML, not a mapping, a key given twice, or a value that YAML reads
            as something else than it looks like.
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
    """The same from a text, such as `{steps: 7, eps: 8/255}`; `what` names it in an error."""
    hint = "one `key: value` a line; text with `: ` or ` #` in it goes in quotes"
    try:
        content = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except _TrapError as error:
        raise UserError(f"{what}, line {error.line}: {error}", hint=error.hint) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # nested too deep, a tag with what is no such value
        raise UserError(f"{what} is not YAML that can be read: {reason_of(error)}", hint=hint) from None
    if not isinstance(content, dict):
        raise UserError(f"{what} must hold keys and values, got {type(content).__name__}", hint="such as `epochs: 30`")
    return content


def written_yaml(values: dict[str, Any]) -> str:
    """Values as a YAML file that this and every other reader reads back the same, in the order given."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _TrapError(Exception):
    """Something that YAML reads in a way that its writer may not have meant."""

    def __init__(self, message: str, hint: str, node: yaml.Node) -> None:
        super().__init__(message)
        self.hint, self.line = hint, node.start_mark.line + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which knows YAML 1.1, without what nobody expects of it."""

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
    """A mapping whose keys are text. PyYAML takes the last value of a key given twice."""
    names = set()
    for key, _ in node.value:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list"
            raise _TrapError(f"the key {shown} is no text to YAML", "put it in quotes if it is a name", key)
        if key.value in names:
            raise _TrapError(f"the key '{key.value}' is given twice", "give it once: the first would be lost", key)
        names.add(key.value)
    return loader.construct_mapping(node, deep=True)  # at once and whole: one that holds itself is refused


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; text that another reader would take for a number or for nothing is in quotes."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        exact(text)
        quoted = True
    except NotANumberError as error:
        quoted = bool(error.hint) or text == "None"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if quoted else None)


_Dumper.add_representer(str, _represent_text)
