"""Decode once into uint8 arrays, then map them into memory.

    <cache_dir>/datasets/<dataset>-<content key>/   meta.json  train-images.npy  train-labels.npy  test-...
    <cache_dir>/datasets/index/<stat fingerprint>   the content key

An entry is built in a temporary folder beside its place and renamed, so it is whole or not there, however
many processes build it at once and wherever one is killed.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap, write_array_header_1_0

from dgad_tk.common import UserError, cache_dir, sha256_file, written_aside
from dgad_tk.data.reading import accessible
from dgad_tk.data.spec import Decoded, Labels, Part

FORMAT = 1
"""Raise it when the same files would decode to other arrays."""
BLOCK = 1024
"""Images that are written at once."""

Build = Callable[[], tuple[list[str], Mapping[str, Iterable[Part]]]]
"""Class names, and for each part its images, some at a time."""

_IMAGES, _LABELS = np.dtype("|u1"), np.dtype("<i8")
_STALE_SECONDS = 24 * 3600
_log = logging.getLogger(__name__)


def cached(name: str, root: Path, files: Sequence[str], build: Build, salt: str = "") -> Decoded:
    """The decoded arrays of `files`, mapped read-only from the cache, which is filled first if need be.

    Args:
        name: of the dataset.
        root: the folder that `files` are in.
        files: all that `build` reads.
        build: called only when the cache has no sound entry. Raises nothing but UserError.
        salt: the options that `build` depends on.

    Raises:
        UserError: a file is damaged or changes meanwhile, or the cache cannot be written.
    """
    stats = _stats(root, files)
    key = _content_key(root, stats, f"{name} format {FORMAT} {salt}")
    entry = cache_dir() / "datasets" / f"{name}-{key[:24]}"
    # Once is enough, unless another process replaces a damaged entry at the very moment we look for ours.
    for _ in range(3):
        if (decoded := _open(entry)) is not None:
            return decoded
        _log.info("%s: decoding %d files from %s, once", name, len(files), root)
        try:
            with _aside(entry) as built:
                _write(built, *build())
                if changed := [file for file, stat in _stats(root, files).items() if stat != stats[file]]:
                    raise UserError(  # under its key, the entry would hold something else for ever
                        f"{root / changed[0]} was changed while it was being read",
                        hint="wait until the files are complete",
                    )
        except OSError as error:
            raise UserError(
                f"cannot write the dataset cache {entry.parent}: {error.strerror or error}",
                hint="make room or set the environment variable DGAD_CACHE to a folder that can be written",
            ) from None
    raise UserError(f"the dataset cache entry {entry} cannot be read back", hint="delete it and try again")


def _stats(root: Path, files: Sequence[str]) -> dict[str, str]:
    """For each file its size in bytes, and when its content and its inode were last changed, in nanoseconds.

    The inode tells new content of the same size whose time was set back.
    """
    found = {}
    with accessible(root):
        for file in files:
            status = os.stat(root / file)
            found[file] = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    return found


def _content_key(root: Path, stats: Mapping[str, str], salt: str) -> str:
    """A SHA-256 of the files' names and bytes and of `salt`. A folder that was moved or copied has the same key.

    Reading all bytes takes seconds to minutes. So an index is kept, from what `stat` says to the key.
    """
    # With the folder: two unpacked archives may agree in every name, size and time, and differ in content.
    seen = _sha256([str(root.resolve()), salt, *map("\0".join, stats.items())])
    index = cache_dir() / "datasets" / "index" / seen
    with suppress(OSError, UnicodeDecodeError):
        known = index.read_text(encoding="ascii")
        if re.fullmatch("[0-9a-f]{64}", known):
            return known

    lines = [salt]
    for file in stats:
        with accessible(root / file):
            lines.append(f"{file}\0{sha256_file(root / file)}")
    key = _sha256(lines)
    # A cache that cannot be written to may still hold the entry; whoever has to write one complains then.
    with suppress(OSError), written_aside(index) as aside:
        aside.write_text(key, encoding="ascii")
    return key


def _sha256(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))  # a file name may hold any bytes
    return digest.hexdigest()


@contextmanager
def _aside(entry: Path) -> Iterator[Path]:
    """A folder to build an entry in, which takes its place when the block ends well."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    for leftover in entry.parent.glob(".building-*"):
        with suppress(OSError):  # of a process that was killed, if it is old enough
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=entry.parent, ignore_cleanup_errors=True) as aside:
        built = Path(aside) / "entry"
        built.mkdir()
        yield built
        if _open(entry) is not None:
            return  # another process was faster
        with suppress(OSError):
            entry.rename(Path(aside) / "damaged")  # whatever is there does not open, and goes with the folder
        try:
            built.rename(entry)
        except OSError:
            if _open(entry) is None:
                raise


class Content(NamedTuple):
    """What the digest of a dataset needs to know of a part: shape and SHA-256 of its images, and its labels."""

    shape: tuple[int, ...]
    sha256: str
    labels: Labels


def _write(folder: Path, classes: list[str], parts: Mapping[str, Iterable[Part]]) -> None:
    contents = {}
    for name, pieces in parts.items():
        contents[name] = _write_images(folder / f"{name}-images.npy", pieces)
        with written_aside(folder / f"{name}-labels.npy") as aside:
            np.save(aside, contents[name].labels.astype(_LABELS))
    record = {
        "format": FORMAT,
        "classes": classes,
        "shapes": {name: content.shape for name, content in contents.items()},
        "sha256": content_sha256(classes, contents),
    }
    with written_aside(folder / "meta.json") as aside:
        aside.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _write_images(path: Path, pieces: Iterable[Part]) -> Content:
    digest = hashlib.sha256()
    labels: list[Labels] = []
    shape: tuple[int, ...] = ()
    # Written, not mapped: on a full disk a write fails with an error, a mapped page kills the process.
    with written_aside(path) as aside, aside.open("wb") as file:
        for piece in pieces:
            if not labels:
                shape = piece.images.shape[1:]
                _write_header(file, (0, *shape))  # as long as that of any other number of images
            assert (piece.images.dtype, *piece.images.shape) == (_IMAGES, len(piece.labels), *shape), f"{piece}"
            for start in range(0, len(piece.labels), BLOCK):
                block = piece.images[start : start + BLOCK].tobytes()
                digest.update(block)
                file.write(block)
            labels.append(piece.labels)
        found = np.concatenate(labels)
        file.seek(0)
        _write_header(file, (len(found), *shape))
    return Content((len(found), *shape), digest.hexdigest(), found)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    write_array_header_1_0(file, {"descr": _IMAGES.str, "fortran_order": False, "shape": shape})


def _open(entry: Path) -> Decoded | None:
    """The entry, or None if it is not there or not whole."""
    try:
        record = json.loads((entry / "meta.json").read_bytes())
        if record["format"] != FORMAT:
            return None
        parts = {}
        for name, shape in record["shapes"].items():
            images = _map(entry / f"{name}-images.npy", _IMAGES, tuple(shape))
            labels = _map(entry / f"{name}-labels.npy", _LABELS, tuple(shape[:1]))
            parts[name] = Part(images, np.array(labels, dtype=np.int64))
        return Decoded([str(label) for label in record["classes"]], parts, str(record["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TokenError):  # the last of a damaged .npy header
        return None


def _map(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap:
    found = open_memmap(path, mode="r")
    if (found.dtype, found.shape, found.offset + found.nbytes) != (dtype, shape, path.stat().st_size):
        raise ValueError(f"{path} is damaged")
    return found


def content_sha256(classes: list[str], contents: Mapping[str, Content]) -> str:
    """A digest of class names, labels and pixels. The same images in another container have the same digest."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for name, content in sorted(contents.items()):
        digest.update(f"\n{name} {list(content.shape)} {content.sha256}\n".encode())
        digest.update(content.labels.astype(_LABELS).tobytes())
    return digest.hexdigest()
