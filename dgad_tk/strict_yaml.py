"""YAML without its traps: what a reader may take for something else is refused, with what to write instead."""

from pathlib import Path
from typing import Any

import yaml

from dgad_tk.common import UserError, reason_of
from dgad_tk.first_bytes import placeholder_of
from dgad_tk.number_text import NotANumberError, exact

_ONE_A_LINE = "one `key: value` a line; text with `: ` or ` #` in it goes in quotes"
_QUOTES = "put it in quotes if it is text"
_MARKS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


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
    return _mapping(_decoded(content, path), f"'{path}'")


def mapping_of(text: str, what: str) -> dict[str, Any]:
    """`{steps: 7, eps: 8/255}`, given for a key that holds keys itself.

    Raises:
        UserError: as `read_yaml`.
    """
    return _mapping(text, what)


def written_yaml(values: dict[str, Any]) -> str:
    """Values as a YAML file that this and every other reader reads back the same, in the order given."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _decoded(content: bytes, path: Path) -> str:
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "")
    if not encoding and b"\0" in content[:1024] and content.strip(b"\0"):
        encoding = "UTF-16, or no text"
    if encoding:
        raise UserError(f"'{path}' is in {encoding}", hint="save it as UTF-8 (in PowerShell: Out-File -Encoding utf8)")
    if content and (found := placeholder_of(content[:512])):
        raise UserError(f"'{path}' is {found[0]}, not a config", hint=found[1])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"'{path}' is not in UTF-8: line {line}", hint="save it as UTF-8") from None


def _mapping(text: str, what: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except _TrapError as error:
        raise UserError(f"{what}, line {error.line}: {error}", hint=error.hint) from None
    except yaml.YAMLError as error:
        raise UserError(f"{what} is not YAML: {reason_of(error)}", hint=_ONE_A_LINE) from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a value that Python cannot hold
        raise UserError(f"{what} is not YAML that can be read: {reason_of(error)}", hint=_ONE_A_LINE) from None
    if not isinstance(content, dict):
        raise UserError(f"{what} must hold keys and values, got {type(content).__name__}", hint="such as `epochs: 30`")
    return content


class _TrapError(Exception):
    """Something that YAML reads in a way that its writer may not have meant."""

    def __init__(self, message: str, hint: str, node: yaml.Node) -> None:
        super().__init__(message)
        self.hint, self.line = hint, node.start_mark.line + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which knows YAML 1.1, without what nobody expects of it."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    loader.flatten_mapping(node)
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list"
            raise _TrapError(f"the key {shown} is no text to YAML", "put it in quotes if it is a name", key_node)
        if key in found:
            raise _TrapError(f"the key '{key}' is given twice", "give it once: the first would be lost", key_node)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    if node.style is None and node.value == "None":
        raise _TrapError("None is text to YAML", "write null for no value, or 'None' in quotes for the text", node)
    return loader.construct_scalar(node)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    digits = text.lstrip("+-")
    if ":" in text:
        raise _TrapError(f"YAML takes {text} for a number to base 60", f"write a plain number; {_QUOTES}", node)
    if len(digits) > 1 and digits[0] == "0" and digits[1] not in "xXbB":
        number = int(digits.replace("_", ""), 8)
        plain = digits.replace("_", "").lstrip("0") or "0"
        raise _TrapError(f"YAML takes {text} for {number}", f"write {plain} or {number}; {_QUOTES}", node)
    return int(loader.construct_yaml_int(node))


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    if ":" in node.value:
        raise _TrapError(f"YAML takes {node.value} for a number to base 60", f"write a plain number; {_QUOTES}", node)
    return float(loader.construct_yaml_float(node))


def _refuse_date(loader: _Loader, node: yaml.ScalarNode) -> None:
    raise _TrapError(f"YAML takes {node.value} for a date", f"put it in quotes: '{node.value}'", node)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:str", _construct_text)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _refuse_date)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; text that another reader would take for a number or for nothing is in quotes."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _needs_quotes(text) else None)


def _needs_quotes(text: str) -> bool:
    try:
        exact(text)
    except NotANumberError as error:
        return bool(error.hint) or text == "None"
    return True


_Dumper.add_representer(str, _represent_text)
