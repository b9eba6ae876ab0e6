"""Whether the source code that a record names may be run, where it is now, and whether it is still the same.

A record comes with a file from anywhere. What it names is not run unless the user says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgad_tk.common import UserError, sha256_file
from dgad_tk.models.own import names_code, own_network

_ELSEWHERE = "`dgad export --network FILE.py:FUNCTION` names it where it is now, and an exported file needs no source"


def trusted_source(name: str, said: Mapping[str, Any], path: Path, *, trust: bool) -> str:
    """The name to build the network of a record by.

    A file is looked for where the record says, from the working folder, and beside the weights.

    Args:
        name: that the record has.
        said: what it says of the source.
        path: of the weights.
        trust: whether the user lets the record's code run.

    Raises:
        UserError: it is code, and not trusted, not there, or another than the weights were trained with.
    """
    if not names_code(name):
        return name
    if not trust:
        raise UserError(
            f"'{path}' is a network of '{name}': opening it runs that source code",
            hint="--trust runs it (in Python trust=True), if you trust who wrote it; an exported .onnx needs no source",
        )
    place, _, function = name.rpartition(":")
    wanted = said.get("source_sha256", "")
    if not place.endswith(".py"):
        own = own_network(name)
        if own is not None and own.sha256 != wanted:
            raise _changed(path, name, own.sha256)
        return name
    beside = path.parent / Path(place).name
    there = [each for each in dict.fromkeys((Path(place).expanduser(), path.parent / place, beside)) if each.is_file()]
    if not there:
        raise UserError(f"'{path}' is a network of '{name}', and there is no file '{place}'", hint=_ELSEWHERE)
    same = [each for each in there if sha256_file(each) == wanted]
    if not same:
        raise _changed(path, name, sha256_file(there[0]))
    return f"{same[0]}:{function}"


def changed_source(name: str, said: Mapping[str, Any]) -> str:
    """A sentence if the source of an own network is another than the weights were trained with; else empty.

    Args:
        name: of the network as it is now.
        said: what the record says of the source.
    """
    wanted = str(said.get("source_sha256", ""))
    own = own_network(name) if said else None
    if own is None or own.sha256 == wanted:
        return ""
    before = str(said.get("package", "")) or f"sha256 {wanted[:12] or 'unknown'}"
    now = own.package or f"sha256 {own.sha256[:12]}"
    return f"the source of '{name}' is not what these weights were trained with: {now}, not {before}"


def _changed(path: Path, name: str, found: str) -> UserError:
    return UserError(
        f"the source '{name}' is not what '{path}' was trained with: its sha256 is {found[:12] or 'unknown'}",
        hint="put it back as it was; `dgad export --network FILE.py:FUNCTION` takes it as it is now",
    )
