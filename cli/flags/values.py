"""Flags of every kind of command, and flags that take numbers, read and refused as `--set` and config files are."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dgad_tk.common import UserError
from dgad_tk.strangers import number_text
from dgad_tk.strangers.number_text import parse_fraction

NORMS = {"linf": "linf", "l2": "l2", "l1": "l1", "l0": "l0"}
SEARCH_PRECISIONS = {"fp32": "fp32", "bf16": "bf16"}
SPLITS = {"train": "train", "val": "val", "test": "test"}

Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run what a file's author wrote: .pt and .pt2, and own networks that a record names."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Curve = Annotated[
    bool,
    typer.Option("--curve", help="Draw robust accuracy against eps, from the distances that fmn finds in one run."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of text.")]


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
        from dgad_tk.config.parsing import read_text  # pydantic, which `--help` can do without

        value = read_text(kind, text, flag) if isinstance(text, str) else text  # else it is the default
        if least is not None and value < least:
            raise UserError(f"{flag} must be at least {least}, got {value}", hint=f"for example {flag} {least}")
        if most is not None and value > most:
            raise UserError(f"{flag} must be at most {most}, got {value}", hint=f"for example {flag} {most}")
        return value

    return read


Seed = Annotated[int | None, whole("--seed", "Seed of every random draw. [0]", least=0, most=2**32 - 1)]


def check_replaceable(flag: str, path: Path, example: str, mark: str, lacking: str) -> None:
    """See that writing a file destroys nothing of anybody else's, before hours of work for it.

    Args:
        example: a file name, for one who names a folder.
        mark: what files that may be replaced have near their beginning.
        lacking: what is said of a file without it.

    Raises:
        UserError: it is a folder or such a file.
    """
    if path.is_dir():
        raise UserError(f"{flag} '{path}' is a folder", hint=f"name a file, such as {path / example}")
    if path.exists() and mark not in path.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise UserError(f"{flag}: '{path}' exists and {lacking}", hint=f"choose another {flag}")


def radii_of(eps: str | None, norm: str) -> list[float]:
    """`8/255`, or several radii separated by commas; none where the flag was not given.

    Raises:
        UserError: one of them is no radius of `norm`.
    """
    parts = eps.split(",") if eps is not None else []
    radii = [parse_fraction(part, upper=1.0 if norm == "linf" else math.inf) for part in parts]
    if 0 in radii:
        raise UserError("--eps must be above 0", hint="for example --eps 8/255")
    return radii


def numbers(text: str, flag: str) -> list[float]:
    """`0.49,0.48,0.45` or `123.7/255,116.3/255,103.5/255` as numbers.

    Raises:
        UserError: one of them is no number.
    """
    try:
        return [number_text.real(part) for part in text.split(",")]
    except number_text.NotANumberError as error:
        raise UserError(
            f"{flag} must be numbers with commas between them, got '{text}'",
            hint=error.hint or f"for example {flag} 0.49,0.48,0.45",
        ) from None
