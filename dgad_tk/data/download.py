"""Fetching official files on request, whole or not at all. Nothing that was fetched is run or unpickled.

torchvision knows the addresses and the MD5 sums; its dataset classes are not used, since they unpickle.
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
    """A file somewhere else: its address, what it is called here, the MD5 of its content in hex digits."""

    url: str
    name: str
    md5: str


def downloads(name: str) -> Path:
    """Where the dataset `name` is downloaded to, and looked for, when no folder is given."""
    return cache_dir() / "downloads" / name


def fetch_files(folder: Path, remotes: Sequence[Remote]) -> None:
    """Put those of `remotes` into `folder` that are not there.

    Raises:
        UserError: no network, another content than announced, or `folder` cannot be written.
    """
    for remote in remotes:
        if not (folder / remote.name).exists():
            with _aside(folder) as aside:
                _fetch(aside, remote).replace(folder / remote.name)


def fetch_archive(root: Path, remote: Remote, folder: str) -> None:
    """Unpack `folder` of a .tar.gz below `root`: of the archive if it lies there already, else of a fetched one.

    Files that are there stay as they are.

    Raises:
        UserError: no network, another content than announced, or `root` cannot be written.
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
    """A temporary folder in `folder`: what takes its name from there is whole."""
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
    except (OSError, HTTPException, RuntimeError, ValueError) as error:  # the third when the MD5 is another one
        raise UserError(
            f"cannot download {remote.url}: {reason_of(error)}",
            hint="fetch it on another machine and give its folder as --data-dir",
        ) from None
    return folder / remote.name
