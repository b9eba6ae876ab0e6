"""Street View House Numbers, cropped digits (Netzer et al. 2011), 32x32 RGB: http://ufldl.stanford.edu/housenumbers.

The files are MATLAB files of version 5: a header of 128 bytes, then one element per variable, mostly compressed.
MathWorks' "MAT-File Level 5 File Format" describes them. `scipy.io.loadmat` is not used: where the byte with the type
of the numbers is damaged, it ends the process with a segmentation fault (scipy 1.17).
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.data.cache import cached
from dgad_tk.data.download import Remote, downloads, fetch_files
from dgad_tk.data.images.request import Request
from dgad_tk.data.reading import Place, find, readable
from dgad_tk.data.spec import Decoded, Part

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
CLASSES = [str(digit) for digit in range(10)]
LARGEST_BYTES = 2**30
"""Most bytes of a file or of an array. The largest official one has 225 million."""
MATRIX, COMPRESSED = 14, 15
STORED = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
"""numpy's names of the types of numbers. MATLAB stores doubles in the smallest type that holds their values."""
GET_IT = "give --data-dir ROOT, where ROOT holds train_32x32.mat and test_32x32.mat, or --download"


def load(data_dir: Path | None, request: Request) -> Decoded:
    """SVHN's cropped digits from its two MATLAB files. The label 10 means the digit 0."""
    root, files = find("SVHN", [Place(data_dir or downloads("svhn"), sorted(FILES.values()))], GET_IT)
    return cached("svhn", root, files, lambda: (CLASSES, {part: _read(root / name) for part, name in FILES.items()}))


def fetch(root: Path) -> None:
    """Fetch the two files."""
    from torchvision.datasets import SVHN  # knows where they are; imports torch

    fetch_files(root, [Remote(*SVHN.split_list[part]) for part in FILES])


def _read(path: Path) -> Iterator[Part]:
    with readable(path, "SVHN"):
        found = _arrays(path)
        if missing := [name for name in ("X", "y") if name not in found]:
            raise ValueError(f"it holds no array of numbers {missing[0]}")
        images, digits = found["X"], found["y"]
        if images.ndim == 3:
            images = images[..., np.newaxis]  # MATLAB drops a last dimension of 1
        if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3) or images.ndim != 4:
            raise ValueError(f"X is {images.dtype} {images.shape}, not uint8 (32, 32, 3, N)")
        count = images.shape[3]
        if digits.size != count or count == 0:
            raise ValueError(f"{digits.shape} labels for {count} images")
        if not np.isin(digits, np.arange(1, 11)).all():
            raise ValueError("its labels are not all from 1 to 10")
    yield Part(images.transpose(3, 2, 0, 1), digits.ravel().astype(np.int64) % 10)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of numbers in a MATLAB file of version 5, by name; ValueError where it is damaged or another file."""
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"it has more than {LARGEST_BYTES:,} bytes")
    content = memoryview(path.read_bytes())
    if bytes(content[124:128]) != b"\x00\x01IM":
        raise ValueError("it is no little-endian MATLAB file of version 5")
    found = {}
    for kind, element in _elements(content[128:], 1):
        if kind == COMPRESSED:
            machine = zlib.decompressobj()
            inflated = machine.decompress(element, LARGEST_BYTES)
            if not machine.eof:  # the checksum is compared at the end
                raise ValueError("it ends too early")
            ((kind, element),) = islice(_elements(memoryview(inflated)), 1)
        if kind == MATRIX:
            _, dims, name, numbers = islice(_elements(element), 4)
            if numbers[0] in STORED:
                shape = np.frombuffer(dims[1], "<i4")
                array = np.frombuffer(numbers[1], STORED[numbers[0]])
                found[bytes(name[1]).decode("latin-1")] = array.reshape(shape, order="F")
    return found


def _elements(content: memoryview, align: int = 8) -> Iterator[tuple[int, memoryview]]:
    """The kind and the bytes of each element. Up to four bytes are stored in the tag itself."""
    while content:
        if len(content) < 8:
            raise ValueError("it ends too early")
        kind, size = struct.unpack_from("<II", content)
        start, end = 8, 8 + size
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = 4, 4 + size
        if end > len(content):
            raise ValueError("it ends too early")
        yield kind, content[start:end]
        content = content[end + -end % align :]
