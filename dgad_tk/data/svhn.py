"""Street View House Numbers, cropped digits (Netzer et al. 2011), 32x32 RGB: http://ufldl.stanford.edu/housenumbers.

The files are MATLAB's of version 5: a header of 128 bytes, then one element for each variable, mostly compressed. They
are read in pieces; MathWorks' "MAT-File Level 5 File Format" describes them.
"""

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dgad_tk.common import UserError
from dgad_tk.data.cache import cached
from dgad_tk.data.download import Remote, downloads, fetch_files
from dgad_tk.data.fingerprint import source_file
from dgad_tk.data.reading import Readable, at_end, exactly, readable
from dgad_tk.data.spec import Decoded, Images, Labels, Shape, Source

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
SHAPE: Shape = (3, 32, 32)
PIXELS = 3 * 32 * 32
CLASSES = [str(digit) for digit in range(10)]
GET_IT = "give --data-dir ROOT, where ROOT holds train_32x32.mat and test_32x32.mat, or --download"
BLOCK = 1024

_MATRIX, _COMPRESSED = 14, 15
# The types that numbers are stored as; MATLAB shrinks a double to the smallest one that holds its values.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


def load(data_dir: Path | None, image_size: int | None) -> Decoded:
    """SVHN's cropped digits from its two .mat files; a label of 10 means the digit 0.

    Raises:
        UserError: the files are not there, or damaged, or hold something else.
    """
    root = _find(data_dir)
    return cached(
        "svhn",
        root,
        [source_file(root, name) for name in sorted(FILES.values())],
        salt="",
        build=lambda: (CLASSES, {part: _source(root / name) for part, name in FILES.items()}),
    )


def download(data_dir: Path | None) -> None:
    """Fetch the two files to `data_dir`, or below the cache, unless they are there.

    Raises:
        UserError: no network, or what came is not SVHN.
    """
    root = data_dir or downloads("svhn")
    if not _missing(root):
        return
    from torchvision.datasets import SVHN  # knows where they are; imports torch

    fetch_files(root, [Remote(*SVHN.split_list[part]) for part in FILES])


def _missing(root: Path) -> list[str]:
    return [name for name in FILES.values() if not os.path.isfile(root / name)]


def _find(data_dir: Path | None) -> Path:
    root = data_dir or downloads("svhn")
    missing = _missing(root)
    if not missing:
        return root
    if data_dir is not None and not os.path.isdir(data_dir):
        raise UserError(f"--data-dir {data_dir} is not a folder", hint=GET_IT)
    if len(missing) < len(FILES):
        raise UserError(f"{root}: SVHN without {missing[0]}", hint=GET_IT)
    raise UserError(f"no SVHN in {root}", hint=GET_IT)


def _source(path: Path) -> Source:
    with readable(path, "SVHN"), path.open("rb") as file:
        images = _variable(file, "X")
        if images.dims[:3] != (32, 32, 3) or len(images.dims) not in (3, 4) or images.stored != "u1":
            raise ValueError(f"X is {images.stored} {images.dims}, not bytes (32, 32, 3, N)")
        count = images.dims[3] if len(images.dims) == 4 else 1  # MATLAB drops a last dimension of 1
        if images.size != count * PIXELS:
            raise ValueError(f"X has {images.size} bytes for {count} images")
        written = _variable(file, "y")
        if written.size != math.prod(written.dims) * np.dtype(written.stored).itemsize:
            raise ValueError(f"y has {written.size} bytes for {written.dims} numbers")
        if math.prod(written.dims) != count or count == 0:
            raise ValueError(f"{written.dims} labels for {count} images")
        numbers = np.frombuffer(exactly(written.data, written.size), dtype=written.order + written.stored)
        _finish(written)
        if not np.isin(numbers, np.arange(1, 11)).all():
            raise ValueError("its labels are not all from 1 to 10")
    labels: Labels = numbers.astype(np.int64) % 10
    return Source(SHAPE, labels, partial(_blocks, path, count))


def _blocks(path: Path, count: int) -> Iterator[Images]:
    with readable(path, "SVHN"), path.open("rb") as file:
        images = _variable(file, "X")
        for start in range(0, count, BLOCK):
            n = min(BLOCK, count - start)
            # The first index runs fastest: row, column, channel, image.
            pixels = np.frombuffer(exactly(images.data, n * PIXELS), dtype=np.uint8).reshape(n, 3, 32, 32)
            yield pixels.transpose(0, 1, 3, 2)
        _finish(images)


@dataclass(frozen=True)
class _Variable:
    """A numeric array whose bytes are still to be read.

    Attributes:
        dims: its shape; the first index runs fastest.
        stored: numpy's letter for how its numbers are written.
        order: "<" or ">".
        size: bytes.
        data: where they come from.
    """

    dims: tuple[int, ...]
    stored: str
    order: str
    size: int
    data: Readable


@dataclass
class _Piece:
    """The next `left` bytes of a file."""

    file: BinaryIO
    left: int

    def read(self, size: int, /) -> bytes:
        found = self.file.read(min(size, self.left))
        self.left -= len(found)
        return found


class _Inflated:
    """What a compressed piece holds, as it is asked for."""

    def __init__(self, piece: Readable) -> None:
        self._piece, self._zlib, self._packed = piece, zlib.decompressobj(), b""

    def read(self, size: int, /) -> bytes:
        parts = []
        while size and not self._zlib.eof:
            packed = self._packed or self._piece.read(2**16)
            found = self._zlib.decompress(packed, size)
            self._packed = self._zlib.unconsumed_tail
            if not packed and not found:
                raise ValueError("it ends too early")
            parts.append(found)
            size -= len(found)
        return b"".join(parts)


def _variable(file: BinaryIO, wanted: str) -> _Variable:
    """The variable of this name.

    Raises:
        ValueError: there is none, or the file is no MATLAB file of version 5.
    """
    file.seek(0)
    header = exactly(file, 128)
    if header[124:] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise ValueError("it is no MATLAB file of version 5")
    order = "<" if header[126:] == b"IM" else ">"
    end = os.fstat(file.fileno()).st_size
    while file.tell() < end:
        kind, size = struct.unpack(order + "II", exactly(file, 8))
        start = file.tell()
        if start + size > end:
            raise ValueError("it ends too early")
        data: Readable = _Piece(file, size)
        if kind == _COMPRESSED:
            data = _Inflated(data)
            kind = struct.unpack(order + "II", exactly(data, 8))[0]
        if kind == _MATRIX and (found := _matrix(data, order, wanted)) is not None:
            return found
        file.seek(start + size)
    raise ValueError(f"it holds no numeric variable {wanted}")


def _matrix(data: Readable, order: str, wanted: str) -> _Variable | None:
    """An array of that name, read up to its numbers; None if it is another one."""
    _part(data, order)  # flags and a class; how the numbers are stored says it all
    dims, name = _part(data, order), _part(data, order)
    if name != wanted.encode():
        return None
    kind, size, held = _tag(data, order)
    if kind not in _STORED:
        raise ValueError(f"{wanted} is no array of numbers")
    shape = np.frombuffer(dims, dtype=order + "i4").tolist()
    return _Variable(tuple(shape), _STORED[kind], order, size, data if held is None else io.BytesIO(held))


def _part(data: Readable, order: str) -> bytes:
    """One of the short elements in front of the numbers."""
    _, size, held = _tag(data, order)
    if held is not None:
        return held
    if size > 4096:
        raise ValueError(f"{size} bytes in front of an array")
    return exactly(data, size + -size % 8)[:size]


def _tag(data: Readable, order: str) -> tuple[int, int, bytes | None]:
    """Kind and size of the next element; up to four bytes of content stand in the tag itself."""
    tag = exactly(data, 8)
    kind, size = struct.unpack(order + "II", tag)
    if kind >> 16:
        return kind & 0xFFFF, kind >> 16, tag[4 : 4 + (kind >> 16)]
    return kind, size, None


def _finish(variable: _Variable) -> None:
    """Read what follows the numbers: zeros up to a whole word, and zlib's checksum."""
    if not isinstance(variable.data, io.BytesIO):
        variable.data.read(-variable.size % 8)
    at_end(variable.data)
