"""Files that came from elsewhere: where they lie, and one line for whatever is wrong with them."""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from dgad_tk.common import UserError, reason_of
from dgad_tk.strangers.first_bytes import beginning, placeholder


class Place(NamedTuple):
    """A folder that may hold a dataset, and the files that the dataset would have there."""

    folder: Path
    files: Sequence[str]

    @property
    def missing(self) -> list[str]:
        """The files that are not there."""
        return [name for name in self.files if not os.path.isfile(self.folder / name)]


class NotThereError(UserError):
    """The files of a dataset are not where they were looked for, or not all of them; a download may help."""


def find(title: str, places: Sequence[Place], hint: str) -> Place:
    """The first place that has all its files.

    Args:
        title: of the dataset.
        places: where to look; the last one is named where there is nothing at all.
        hint: how to get the files.

    Raises:
        NotThereError: there is none.
    """
    for place in places:
        if not place.missing:
            return place
    for place in places:
        if len(place.missing) < len(place.files):
            raise NotThereError(f"{place.folder}: {title} without {', '.join(place.missing)}", hint=hint)
    raise NotThereError(f"no {title} in {places[-1].folder}", hint=hint)


@contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Damage of any kind inside the block becomes one line: `path` cannot be read as `what`.

    Raises:
        UserError: in place of OSError, EOFError, ValueError and zlib.error.
    """
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason, hint = reason_of(error), "delete the file and fetch it again"
        with suppress(OSError):
            if found := placeholder(beginning(path)):
                reason, hint = f"it is {found[0]}", found[1]
        raise UserError(f"{path} cannot be read as {what}: {reason}", hint=hint) from None


@contextmanager
def accessible(path: Path) -> Iterator[None]:
    """Failing to read `path`, or a file below it, inside the block becomes one line.

    Raises:
        UserError: in place of OSError and UnicodeDecodeError.
    """
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = "check that it is there and its permissions; restore it, or delete a link that leads nowhere"
        raise UserError(f"cannot read {getattr(error, 'filename', None) or path}: {reason}", hint=hint) from None
