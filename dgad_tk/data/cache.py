"""Decode once into uint8 arrays, then map them into memory.

    <cache_dir>/datasets/<dataset>-<content key>/   meta.json  train-images.npy  train-labels.npy  test-...
    <cache_dir>/datasets/index/<stat fingerprint>   the content key

An entry is built in a temporary folder beside its place and renamed, so it is whole or not there, however
many processes build it at once and wherever one is killed.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from dgad_tk.common import UserError, cache_dir, synced
from dgad_tk.data.fingerprint import SourceFile, changed, content_key
from dgad_tk.data.spec import Decoded, Images, Labels, Part, Source

FORMAT = 1
"""Raise it when the same files would decode to other arrays."""

Build = Callable[[], tuple[list[str], Mapping[str, Source]]]
"""Class names and the parts to decode."""

_IMAGES, _LABELS = np.dtype("|u1"), np.dtype("<i8")
_STALE_SECONDS = 24 * 3600
_log = logging.getLogger(__name__)


def cached(name: str, root: Path, files: Sequence[SourceFile], salt: str, build: Build) -> Decoded:
    """The decoded arrays of `files`, mapped read-only from the cache, which is filled first if need be.

    Args:
        name: of the dataset.
        root: the folder that `files` are in.
        files: all that `build` reads.
        salt: the options that `build` depends on.
        build: called only when the cache has no sound entry. Raises nothing but UserError.

    Raises:
        UserError: a file is damaged or changes meanwhile, or the cache cannot be written.
    """
    key = content_key(root, files, f"{name} format {FORMAT} {salt}")
    entry = cache_dir() / "datasets" / f"{name}-{key[:24]}"
    # Once is enough, but for a process that replaces a damaged entry at the very moment we look for ours.
    for _ in range(3):
        if (decoded := _open(entry)) is not None:
            return decoded
        _log.info("%s: decoding %d files from %s, once", name, len(files), root)
        try:
            _build(entry, build, root, files)
        except OSError as error:
            raise UserError(
                f"cannot write the dataset cache {entry.parent}: {error.strerror or error}",
                hint="make room or set the environment variable DGAD_CACHE to a folder that can be written",
            ) from None
    raise UserError(f"the dataset cache entry {entry} cannot be read back", hint="delete it and try again")


def in_memory(classes: list[str], parts: Mapping[str, Part]) -> Decoded:
    """Arrays too small to be worth a cache."""
    digests = {name: hashlib.sha256(part.images.tobytes()).hexdigest() for name, part in parts.items()}
    shapes = {name: part.images.shape for name, part in parts.items()}
    labels = {name: part.labels for name, part in parts.items()}
    return Decoded(classes, parts, _content_sha256(classes, shapes, labels, digests))


def _build(entry: Path, build: Build, root: Path, files: Sequence[SourceFile]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(entry.parent)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=entry.parent, ignore_cleanup_errors=True) as aside:
        built = Path(aside) / "entry"
        built.mkdir()
        _write(built, *build())
        if (name := changed(root, files)) is not None:
            # Under its key, the entry would hold something else for ever.
            raise UserError(
                f"{root / name} was changed while it was being read", hint="wait until the files are complete"
            )
        if _open(entry) is not None:
            return  # another process was faster
        with suppress(OSError):
            entry.rename(Path(aside) / "damaged")  # whatever is there does not open, and goes with the folder
        try:
            built.rename(entry)
        except OSError:
            if _open(entry) is None:
                raise


def _remove_stale(folder: Path) -> None:
    """Clear away what killed processes left behind long ago."""
    for leftover in folder.glob(".building-*"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)


def _write(folder: Path, classes: list[str], sources: Mapping[str, Source]) -> None:
    shapes = {name: (len(source.labels), *source.shape) for name, source in sources.items()}
    digests = {}
    for name, source in sources.items():
        with (folder / f"{name}-labels.npy").open("wb") as file:
            file.write(_header(_LABELS, (len(source.labels),)) + source.labels.astype(_LABELS).tobytes())
            _flush(file)
        # Written, not mapped: on a full disk a write fails with an error, a mapped page kills the process.
        with (folder / f"{name}-images.npy").open("wb") as file:
            file.write(_header(_IMAGES, shapes[name]))
            digests[name] = _write_blocks(file, source.blocks(), shapes[name])
            _flush(file)
    labels = {name: source.labels for name, source in sources.items()}
    record = {
        "format": FORMAT,
        "classes": classes,
        "shapes": shapes,
        "sha256": _content_sha256(classes, shapes, labels, digests),
    }
    with (folder / "meta.json").open("wb") as file:
        file.write(json.dumps(record, indent=1).encode())
        _flush(file)


def _write_blocks(file: BinaryIO, blocks: Iterable[Images], shape: tuple[int, ...]) -> str:
    digest, count = hashlib.sha256(), 0
    for block in blocks:
        assert (block.dtype, *block.shape[1:]) == (_IMAGES, *shape[1:]), f"{block.dtype} {block.shape} in {shape}"
        digest.update(block.tobytes())
        file.write(block.tobytes())
        count += len(block)
    assert count == shape[0], f"{count} images decoded, {shape[0]} announced"
    return digest.hexdigest()


def _flush(file: BinaryIO) -> None:
    synced(file)  # else a rename may reach the disk before the data do


def _open(entry: Path) -> Decoded | None:
    """The entry, or None if it is not there or not whole."""
    try:
        record = json.loads((entry / "meta.json").read_bytes())
        if record["format"] != FORMAT:
            return None
        parts = {}
        for name, (n, channels, height, width) in record["shapes"].items():
            images = _map(entry / f"{name}-images.npy", _IMAGES, (n, channels, height, width))
            labels: Labels = np.array(_map(entry / f"{name}-labels.npy", _LABELS, (n,)), dtype=np.int64)
            parts[name] = Part(images, labels)
        return Decoded([str(label) for label in record["classes"]], parts, str(record["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _map(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A .npy file written here, mapped read-only.

    Raises:
        ValueError: its size or header is not what was written.
    """
    header = _header(dtype, shape)
    expected = len(header) + np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != expected or file.read(len(header)) != header:
            raise ValueError(f"{path} is damaged")
        return np.memmap(file, dtype=dtype, mode="r", offset=len(header), shape=shape)


def _header(dtype: DTypeLike, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": tuple(shape)})
    return buffer.getvalue()


def _content_sha256(
    classes: list[str],
    shapes: Mapping[str, tuple[int, ...]],
    labels: Mapping[str, Labels],
    digests: Mapping[str, str],
) -> str:
    content = hashlib.sha256(json.dumps(classes).encode())
    for name in sorted(shapes):
        content.update(f"\n{name} {list(shapes[name])} {digests[name]}\n".encode())
        content.update(labels[name].astype(_LABELS).tobytes())
    return content.hexdigest()
