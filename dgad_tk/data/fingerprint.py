"""Which content a set of files has, without reading them all at every start.

The content key is a SHA-256 over relative paths and bytes, so a dataset that was moved or copied finds its
cache entry. Reading it all takes seconds to minutes, so an index from the files' `stat` to the key is kept.
"""

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dgad_tk.common import UserError, cache_dir, sha256_file, written_aside


def stats_of(root: Path, files: Sequence[str]) -> list[str]:
    """For each file its size in bytes and, in nanoseconds, when its content and its inode were last changed.

    The inode notices new content of the same size under a restored time.

    Raises:
        UserError: a file is gone, or a link that leads nowhere.
    """
    found = []
    for name in files:
        try:
            status = (root / name).stat()
        except OSError as error:
            raise UserError(
                f"cannot read {root / name}: {error.strerror or error}",
                hint="restore the file or delete the link to it",
            ) from None
        found.append(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}")
    return found


def content_key(root: Path, files: Sequence[str], stats: Sequence[str], salt: str) -> str:
    """64 hex digits for the names and bytes of `files`, and for what else the arrays depend on.

    Args:
        root: the folder that `files` are in.
        files: paths below `root`, with forward slashes.
        stats: what `stats_of` says of them.
        salt: what else the arrays depend on.

    Raises:
        UserError: a file cannot be read.
    """
    # With the folder: two unpacked archives may agree in every name, size and time, and differ in content.
    seen = hashlib.sha256(_encoded(f"{root.resolve()}\n{salt}\n"))
    for name, stat in zip(files, stats, strict=True):
        seen.update(_encoded(f"{name}\0{stat}\n"))
    index = cache_dir() / "datasets" / "index" / seen.hexdigest()
    with suppress(OSError, UnicodeDecodeError):
        known = index.read_text(encoding="ascii")
        if re.fullmatch("[0-9a-f]{64}", known):
            return known

    content = hashlib.sha256(_encoded(f"{salt}\n"))
    for name in files:
        try:
            content.update(_encoded(f"{name}\0{sha256_file(root / name)}\n"))
        except OSError as error:
            raise UserError(
                f"cannot read {root / name}: {error.strerror or error}", hint="check the file and its permissions"
            ) from None
    # A cache that cannot be written to may still hold the entry; whoever has to write one complains then.
    with suppress(OSError), written_aside(index) as aside:
        aside.write_text(content.hexdigest(), encoding="ascii")
    return content.hexdigest()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # a file name may hold any bytes
