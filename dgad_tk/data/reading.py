"""Reading binary files that may be damaged: every surprise is one line that names the file."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from dgad_tk.common import UserError
from dgad_tk.first_bytes import placeholder


class Readable(Protocol):
    """As much of a binary file as reading from front to back takes."""

    def read(self, size: int, /) -> bytes: ...


@contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Damage of any kind inside the block becomes one line: `path` cannot be read as `what`.

    Raises:
        UserError: in place of OSError, EOFError, ValueError and zlib.error.
    """
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason, hint = " ".join(str(error).split()), "delete the file and fetch it again"
        with suppress(OSError):
            if found := placeholder(path):
                reason, hint = f"it is {found[0]}", found[1]
        raise UserError(f"{path} cannot be read as {what}: {reason}", hint=hint) from None


def exactly(file: Readable, size: int) -> bytes:
    """The next `size` bytes.

    Raises:
        ValueError: there are fewer.
    """
    found = file.read(size)
    if len(found) != size:
        raise ValueError("it ends too early")
    return found


def at_end(file: Readable) -> None:
    """Nothing may follow; reading past the end also makes gzip and zlib compare their checksums.

    Raises:
        ValueError: something does.
    """
    if file.read(1):
        raise ValueError("it is longer than its header says")
