"""From text to the values of typed keys, by one road for YAML, `--set`, `DGAD_*` and flags.

The type of a key says what its text is: a path is the text that stands there, a number is a number. YAML gives
structure, text and null alone, so `data_dir: 2024-05-01` is a folder and no date, and `epochs: 010` is refused.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from dgad_tk.common import UserError, nearest, reason_of
from dgad_tk.first_bytes import placeholder_of
from dgad_tk.number_text import LONGEST, NotANumberError, real, whole

M = TypeVar("M", bound=BaseModel)

NOTHING = ("", "null", "none", "~")
SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


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
    known = hints_of(owner)
    return {key: fitted(known[key], value, where + key) if key in known else value for key, value in values.items()}


@cache
def hints_of(owner: type) -> dict[str, Any]:
    """The annotations of a class with their metadata, by key."""
    return get_type_hints(owner, include_extras=True)


def fitted(hint: Any, value: Any, what: str) -> Any:
    """A value from Python or YAML for a key of type `hint`, with each text in it read. The rest the model judges.

    Raises:
        UserError: a text that is no value of this type, or a switch in the place of a number.
    """
    base = _plain_type(hint)
    if isinstance(value, str):
        return read_text(hint, value, what)
    if isinstance(value, bool) and base in (int, float):
        raise UserError(f"{what} must be a number, got {str(value).lower()}", hint="write the number")
    if get_origin(base) is tuple and isinstance(value, list | tuple):
        return tuple(fitted(get_args(base)[0], part, what) for part in value)
    return _guessed(value) if get_origin(base) is dict else value


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
    textual = base in (str, Path)
    if NoneType in get_args(hint) and (not text if textual else text.strip().lower() in NOTHING):
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
    return text


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


def _guessed(value: Any) -> Any:
    """What a key may hold that takes anything: a text in it is a number or a switch where it looks like one."""
    if isinstance(value, Mapping):
        return {key: _guessed(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_guessed(each) for each in value]
    if not isinstance(value, str):
        return value
    try:
        return real(value) if "." in value else whole(value)
    except NotANumberError:
        return {"true": True, "false": False}.get(value, value)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping. Its plain scalars are text, or None.

    Raises:
        UserError: missing, not text in UTF-8, not YAML, not a mapping, or a key given twice.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read config '{path}': {error.strerror}", hint="give --config a YAML file") from None
    if content and (found := placeholder_of(content[:512])):
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
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # nested too deep, a tag with what is no such value
        raise UserError(f"{what} is not YAML that can be read: {reason_of(error)}", hint=hint) from None
    if not isinstance(content, dict):
        got = f"'{content[:LONGEST]}'" if isinstance(content, str) else type(content).__name__
        raise UserError(f"{what} must hold keys and values, got {got}", hint="such as `epochs: 30`")
    return content


def written_yaml(values: dict[str, Any]) -> str:
    """Values as a YAML file that this and every other reader reads back the same, in the order given."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which takes `null` for None and every other plain scalar for text."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    """A mapping whose keys are text. A key given twice is refused; PyYAML takes the last one."""
    names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
    if twice := [name for name, times in names.items() if times > 1]:
        problem = f"the key '{twice[0]}' is given twice, and the first would be lost"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    # At once and whole, so that a mapping which holds itself is refused.
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, with quotes around text that a reader of YAML 1.2 could take for a number."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    like_a_number = text[:1].isdigit() or text[:1] in ("+", "-", ".")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if like_a_number else None)


_Dumper.add_representer(str, _represent_text)
