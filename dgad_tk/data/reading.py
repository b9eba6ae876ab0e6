"""Finds a dataset's files, and turns every error in reading them into one line."""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from dgad_tk.common import UserError, reason_of
from dgad_tk.strangers.first_bytes import beginning, placeholder


class Place(NamedTuple):
    """A folder that may hold a dataset, and the names that the dataset's files would have there."""

    folder: Path
    files: Sequence[str]


class NotThereError(UserError):
    """Some files of a dataset are missing; a download may help."""


def find(title: str, places: Sequence[Place], hint: str) -> Place:
    """The first place that has all its files.

    Args:
        title: of the dataset.
        places: where to look. The error names the last one where no place has any file.
        hint: how to get the files.

    Raises:
        NotThereError: no place has all files.
    """
    lacking = [[name for name in place.files if not os.path.isfile(place.folder / name)] for place in places]
    for place, missing in zip(places, lacking, strict=True):
        if not missing:
            return place
    for place, missing in zip(places, lacking, strict=True):
        if len(missing) < len(place.files):
            raise NotThereError(f"{place.folder}: {title} without {', '.join(missing)}", hint=hint)
    raise NotThereError(f"no {title} in {places[-1].folder}", hint=hint)


@contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Turn an OSError, EOFError, ValueError or zlib.error into a UserError: `path` cannot be read as `what`."""
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
    """Turn an OSError or UnicodeDecodeError about `path`, or a file below it, into a UserError."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = "check that it is there and its permissions; restore it, or delete a link that leads nowhere"
        raise UserError(f"cannot read {getattr(error, 'filename', None) or path}: {reason}", hint=hint) from None
