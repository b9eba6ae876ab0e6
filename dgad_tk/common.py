"""What all parts use: user errors, look-ups with suggestions, and files that are written whole or not at all."""

import difflib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

NOT_OFFERED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of a file system that does not offer a service such as locks. Many network file systems do not."""


class UserError(Exception):
    """The user's input cannot be used. The command line prints one line each and exits with code 2.

    Every other exception is a bug and keeps its traceback.

    Args:
        message: what was expected and what came.
        hint: what to do about it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class GateError(Exception):
    """A check that the user asked for failed, such as the parity of an export. The command exits with code 1."""


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint for a misspelt name: the nearest known one; else `otherwise`, or the list of all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else otherwise or "expected one of " + ", ".join(known)


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """The row `name` of a table of `what`s ("method", "model"); UserError with the nearest name where there is none."""
    if name not in table:
        raise UserError(f"unknown {what} '{name}'", hint=nearest(name, table))
    return table[name]


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`. It is renamed to `path` when the block ends well, and deleted otherwise.

    So a killed process or a full disk leaves the last good file whole. The suffix is kept, since some writers choose
    their format by it.

    Raises:
        OSError: the file cannot be written. The error names `path`, not the temporary file.
    """
    aside = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    with naming(path, instead_of=aside):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.touch(exist_ok=False)
            yield aside
            with aside.open("rb+") as file:  # Windows flushes only files that are open for writing
                try:
                    os.fsync(file.fileno())  # else the rename may reach the disk before the content
                except OSError as error:
                    if error.errno not in NOT_OFFERED:
                        raise
            aside.replace(path)
        finally:
            with suppress(OSError):  # it was renamed, or another error is on its way
                aside.unlink()


@contextmanager
def naming(path: Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """Put `path` into system errors that name no file (a lock, a full disk) or that name `instead_of`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(instead_of)):
            error.filename = str(path)
            if error.filename2 is not None:
                del error.filename2
        raise


def cache_dir() -> Path:
    """Where derived data are kept between runs: `$DGAD_CACHE`, else `$XDG_CACHE_HOME/dgad`, else `~/.cache/dgad`."""
    if chosen := os.environ.get("DGAD_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgad"


def reason_of(error: Exception) -> str:
    """The message of a library's error on one line of at most 200 characters, or its type where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_json(path: Path, document: Any) -> None:
    """Write a document as JSON, whole or not at all. NaN and infinity raise ValueError: JSON has neither."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
