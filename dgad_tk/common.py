"""What every part needs and no part owns: errors of the user, look-ups with suggestions, files."""

import difflib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")

NOT_OFFERED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What a file system answers that has no such service, as many network and user-space ones have not."""


class UserError(Exception):
    """Something a user handed in cannot be used.

    The command line prints `message` and `hint` on one line each and exits with code 2. Anything else that is raised
    is a bug and keeps its traceback.

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
    """A check that the user asked for failed: parity of an export, a threshold. The command exits with code 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest known one, or the whole list."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else "expected one of " + ", ".join(known)


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """The row `name` of a table of `what`s ("method", "model", ...).

    Raises:
        UserError: no such row; names the nearest one.
    """
    if name not in table:
        raise UserError(f"unknown {what} '{name}'", hint=nearest(name, table))
    return table[name]


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def synced(file: IO[Any]) -> None:
    """Wait until what was written to a file is on the disk, else a rename may reach it first.

    That is a precaution, which some file systems do not offer; a disk that fails to write is an error.

    Raises:
        OSError: it could not be written.
    """
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well, and vanishes otherwise.

    A killed process or a full disk leaves the last good file whole, never half of a new one. The suffix is kept, since
    some writers choose their format by it.

    Raises:
        OSError: it cannot be written; it names `path`, which says more than the temporary name or none.
    """
    aside = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    with naming(path, instead_of=aside):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.touch(exist_ok=False)
            yield aside
            with aside.open("rb+") as file:  # Windows flushes no file that is open for reading alone
                synced(file)
            aside.replace(path)
        finally:
            with suppress(OSError):  # gone, or what is wrong has been said
                aside.unlink()


@contextmanager
def naming(path: Path, *, instead_of: Path | None = None) -> Iterator[None]:
    """Put `path` into the system's errors that name no file, as of a lock or a full disk, or that name `instead_of`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(instead_of)):
            error.filename = str(path)
            if error.filename2 is not None:
                del error.filename2
        raise


def cache_dir() -> Path:
    """Where derived data may be kept between runs: `$DGAD_CACHE`, else `$XDG_CACHE_HOME/dgad`, else `~/.cache/dgad`."""
    if chosen := os.environ.get("DGAD_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgad"


def reason_of(error: Exception) -> str:
    """What an error of a library says, on one line of at most 200 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_json(path: Path, document: Any) -> None:
    """Write a document as JSON (RFC 8259, so NaN is refused), indented by 2, in one step.

    Raises:
        OSError: as `written_aside`.
    """
    with written_aside(path) as aside:
        aside.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
