"""Which content a set of files has, without reading them all at every start.

The content key is a SHA-256 over relative paths and bytes, so a dataset that was moved or copied finds its
cache entry. Reading it all takes seconds to minutes, so an index from the files' `stat` to the key is kept.
"""

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dgad_tk.common import UserError, cache_dir, sha256_file, written_aside


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as `stat` sees it.

    Attributes:
        name: path below the dataset's folder, with forward slashes.
        size: bytes.
        mtime_ns: last change of the content.
        ctime_ns: last change of the inode; notices new content of the same size under a restored mtime.
    """

    name: str
    size: int
    mtime_ns: int
    ctime_ns: int


def source_file(root: Path, name: str) -> SourceFile:
    """The file `name` below `root` as it is now.

    Raises:
        UserError: it is gone, or a link that leads nowhere.
    """
    try:
        status = (root / name).stat()
    except OSError as error:
        raise UserError(
            f"cannot read {root / name}: {error.strerror or error}",
            hint="restore the file or delete the link to it",
        ) from None
    return SourceFile(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def content_key(root: Path, files: Sequence[SourceFile], salt: str) -> str:
    """64 hex digits for the names and bytes of `files` and for `salt`, what else the arrays depend on.

    Raises:
        UserError: a file cannot be read.
    """
    # With the folder: two unpacked archives may agree in every name, size and time, and differ in content.
    stats = hashlib.sha256(_encoded(f"{root.resolve()}\n{salt}\n"))
    for file in files:
        stats.update(_encoded(f"{file.name}\0{file.size} {file.mtime_ns} {file.ctime_ns}\n"))
    index = cache_dir() / "datasets" / "index" / stats.hexdigest()
    with suppress(OSError, UnicodeDecodeError):
        known = index.read_text(encoding="ascii")
        if re.fullmatch("[0-9a-f]{64}", known):
            return known

    content = hashlib.sha256(_encoded(f"{salt}\n"))
    for file in files:
        try:
            content.update(_encoded(f"{file.name}\0{sha256_file(root / file.name)}\n"))
        except OSError as error:
            raise UserError(
                f"cannot read {root / file.name}: {error.strerror or error}",
                hint="check the file and its permissions",
            ) from None
    # A cache that cannot be written to may still hold the entry; whoever has to write one complains then.
    with suppress(OSError), written_aside(index) as aside:
        aside.write_text(content.hexdigest(), encoding="ascii")
    return content.hexdigest()


def changed(root: Path, files: Sequence[SourceFile]) -> str | None:
    """The name of a file that is no longer what it was when `files` was made, or None."""
    return next((file.name for file in files if source_file(root, file.name) != file), None)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # a file name may hold any bytes
