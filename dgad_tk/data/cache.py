"""Decodes a dataset once into uint8 arrays and maps them into memory.

    <cache_dir>/datasets/<dataset>-<content key>/   meta.json  train-images.npy  train-labels.npy  test-...
    <cache_dir>/datasets/index/<stat fingerprint>   the content key

An entry is built in a temporary folder and then renamed. So it is whole or not there, even where several processes
build it at once or one is killed.
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

from dgad_tk.common import UserError, cache_dir, sha256_file, write_json, written_aside
from dgad_tk.data.reading import accessible
from dgad_tk.data.spec import Decoded, Labels, Part

FORMAT = 1
"""Must be raised when the same files decode to other arrays."""
BLOCK = 1024
"""Images per write."""

Build = Callable[[], tuple[list[str], Mapping[str, Iterable[Part]]]]
"""Class names, and the images of each part in pieces."""

_IMAGES, _LABELS = np.dtype("|u1"), np.dtype("<i8")
_STALE_SECONDS = 24 * 3600
_log = logging.getLogger(__name__)


def cached(name: str, root: Path, files: Sequence[str], build: Build, salt: str = "") -> Decoded:
    """The decoded arrays of `files`, mapped read-only from the cache; the cache is filled first where needed.

    Args:
        name: of the dataset.
        root: folder of `files`.
        files: all that `build` reads.
        build: called only when the cache has no sound entry. Raises only UserError.
        salt: the options that `build` depends on.

    Raises:
        UserError: a file is damaged or changes meanwhile, or the cache cannot be written.
    """
    stats = _stats(root, files)
    key = _content_key(root, stats, f"{name} format {FORMAT} {salt}")
    entry = cache_dir() / "datasets" / f"{name}-{key[:24]}"
    # One round is enough, unless another process replaces a damaged entry at the same moment.
    for _ in range(3):
        if (decoded := _open(entry)) is not None:
            return decoded
        _log.info("%s: decoding %d files from %s, once", name, len(files), root)
        try:
            with _aside(entry) as built:
                _write(built, *build())
                if changed := [file for file, stat in _stats(root, files).items() if stat != stats[file]]:
                    raise UserError(  # the entry would not hold what its key says
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
    """Per file: size, time of modification, and time of change of its inode, which nobody can set back."""
    found = {}
    with accessible(root):
        for file in files:
            status = os.stat(root / file)
            found[file] = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    return found


def _content_key(root: Path, stats: Mapping[str, str], salt: str) -> str:
    """A SHA-256 of the files' names, their bytes and `salt`. A folder that was moved or copied keeps its key.

    Reading all bytes takes seconds to minutes, so an index keeps the key under a digest of what `stat` says.
    """
    # The folder belongs to the digest: two archives may agree in all names, sizes and times, but not in content.
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
    # A cache that cannot be written may still hold the entry. If not, writing the entry reports the error.
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
    """A folder to build an entry in. It becomes `entry` when the block ends well."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    for leftover in entry.parent.glob(".building-*"):
        with suppress(OSError):  # an old one belongs to a process that was killed
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=entry.parent, ignore_cleanup_errors=True) as aside:
        built = Path(aside) / "entry"
        built.mkdir()
        yield built
        if _open(entry) is not None:
            return  # another process was faster
        with suppress(OSError):
            entry.rename(Path(aside) / "damaged")  # an entry that does not open is deleted with the folder
        try:
            built.rename(entry)
        except OSError:
            if _open(entry) is None:
                raise


class Content(NamedTuple):
    """What a dataset's digest is computed from, per part: shape and SHA-256 of its images, and its labels."""

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
    write_json(folder / "meta.json", record)


def _write_images(path: Path, pieces: Iterable[Part]) -> Content:
    digest = hashlib.sha256()
    labels: list[Labels] = []
    shape: tuple[int, ...] = ()
    # Not through a memory map: on a full disk a write raises an error, but a mapped page kills the process.
    with written_aside(path) as aside, aside.open("wb") as file:
        for piece in pieces:
            if not labels:
                shape = piece.images.shape[1:]
                _write_header(file, (0, *shape))  # its length does not depend on the number of images
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
    """The entry; None where it is missing or damaged."""
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TokenError):  # the last: a damaged .npy header
        return None


def _map(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap:
    found = open_memmap(path, mode="r")
    if (found.dtype, found.shape, found.offset + found.nbytes) != (dtype, shape, path.stat().st_size):
        raise ValueError(f"{path} is damaged")
    return found


def content_sha256(classes: list[str], contents: Mapping[str, Content]) -> str:
    """A SHA-256 of class names, labels and pixels, whatever files they came from."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for name, content in sorted(contents.items()):
        digest.update(f"\n{name} {list(content.shape)} {content.sha256}\n".encode())
        digest.update(content.labels.astype(_LABELS).tobytes())
    return digest.hexdigest()
