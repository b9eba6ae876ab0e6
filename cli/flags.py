"""Flags that take a number: read as `--set` and config files read theirs, and refused in the same words."""

from collections.abc import Callable
from typing import Any

import typer

from dgad_tk.common import UserError


def whole(flag: str, help: str, *, least: int | None = None, most: int | None = None) -> Any:
    """An option for a whole number from `least` to `most`.

    Args:
        flag: its name, such as `--epochs`.
    """
    return typer.Option(flag, help=help, parser=_reader(int, flag, least, most), metavar="INTEGER")


def real(flag: str, help: str) -> Any:
    """An option for a number."""
    return typer.Option(flag, help=help, parser=_reader(float, flag, None, None), metavar="FLOAT")


def _reader(kind: type, flag: str, least: int | None, most: int | None) -> Callable[[Any], Any]:
    def read(text: Any) -> Any:
        from dgad_tk.parsing import read_text  # pydantic, which `--help` can do without

        value = read_text(kind, text, flag) if isinstance(text, str) else text  # else it is the default
        if least is not None and value < least:
            raise UserError(f"{flag} must be at least {least}, got {value}", hint=f"for example {flag} {least}")
        if most is not None and value > most:
            raise UserError(f"{flag} must be at most {most}, got {value}", hint=f"for example {flag} {most}")
        return value

    return read
