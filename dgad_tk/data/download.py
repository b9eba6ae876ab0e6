"""Fetches official files on request, each whole or not at all.

torchvision provides the addresses and MD5 sums. Its dataset classes are not used, since they run pickles.
"""

import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from dgad_tk.common import UserError, cache_dir, reason_of


class Remote(NamedTuple):
    """A file to fetch: its address, its name here, the MD5 of its content in hex digits."""

    url: str
    name: str
    md5: str


def downloads(name: str) -> Path:
    """The folder that the dataset `name` is downloaded to and read from when no --data-dir is given."""
    return cache_dir() / "downloads" / name


def fetch_files(folder: Path, remotes: Sequence[Remote]) -> None:
    """Fetch those of `remotes` that `folder` lacks; UserError without network, or where the MD5 is wrong."""
    for remote in remotes:
        if not (folder / remote.name).exists():
            with _aside(folder) as aside:
                _fetch(aside, remote).replace(folder / remote.name)


def fetch_archive(root: Path, remote: Remote, folder: str) -> None:
    """Unpack `folder` of a .tar.gz below `root`. The archive is fetched unless `root` holds it; no file is replaced.

    Errors are those of `fetch_files`.
    """
    from torchvision.datasets.utils import check_integrity  # imports torch

    with _aside(root) as aside:
        there = root / remote.name
        archive = there if check_integrity(there, remote.md5) else _fetch(aside, remote)
        try:
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(aside / "unpacked", filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"{archive} cannot be unpacked: {error}", hint="delete it and fetch it again") from None
        (root / folder).mkdir(exist_ok=True)
        for file in sorted((aside / "unpacked" / folder).iterdir()):
            if not (root / folder / file.name).exists():
                file.replace(root / folder / file.name)


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`, so that a whole file can be renamed into place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".downloading-", dir=folder, ignore_cleanup_errors=True) as aside:
            yield Path(aside)
    except OSError as error:
        raise UserError(
            f"cannot download to {folder}: {error.strerror or error}",
            hint="make room, or choose a folder that can be written with --data-dir",
        ) from None


def _fetch(folder: Path, remote: Remote) -> Path:
    from torchvision.datasets.utils import download_url  # imports torch

    try:
        download_url(remote.url, folder, remote.name, remote.md5)
    except (OSError, HTTPException, RuntimeError, ValueError) as error:  # RuntimeError: the MD5 is wrong
        raise UserError(
            f"cannot download {remote.url}: {reason_of(error)}",
            hint="fetch it on another machine and give its folder as --data-dir",
        ) from None
    return folder / remote.name
