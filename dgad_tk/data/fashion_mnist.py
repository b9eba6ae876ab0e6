"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), 28x28 grey: https://github.com/zalandoresearch/fashion-mnist."""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from dgad_tk.common import UserError
from dgad_tk.data.cache import cached
from dgad_tk.data.fingerprint import source_file
from dgad_tk.data.spec import Decoded, Images, Labels, Shape, Source

CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the four files."""
PREFIXES = {"train": "train", "test": "t10k"}
GET_IT = (
    "install Debian's package dataset-fashion-mnist, or let torchvision.datasets.FashionMNIST(ROOT, "
    "download=True) fetch it and give --data-dir ROOT"
)
BLOCK = 4096


def load(data_dir: Path | None, image_size: int | None) -> Decoded:
    """Fashion-MNIST from its four idx files, packed or not: in one folder, or below torchvision's root.

    Raises:
        UserError: the files are not there, or damaged.
    """
    root, files = _find(data_dir)
    return cached(
        "fashion-mnist",
        root,
        [source_file(root, name) for name in sorted(files.values())],
        salt="",
        build=lambda: (CLASSES, {part: _source(root, files, part) for part in PREFIXES}),
    )


def _find(data_dir: Path | None) -> tuple[Path, dict[str, str]]:
    """The folder with the four files, and the name of each as it is there (packed or not)."""
    wanted = [f"{prefix}-{kind}" for prefix in PREFIXES.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    folders = [DEBIAN] if data_dir is None else [data_dir / "FashionMNIST" / "raw", data_dir / "raw", data_dir]
    missing: list[str] = []
    for folder in folders:
        # Unpacked first: where torchvision left both, it reads these.
        there = {name: found for name in wanted for found in (f"{name}.gz", name) if os.path.isfile(folder / found)}
        if len(there) == len(wanted):
            return folder, there
        if there and not missing:
            missing = [name for name in wanted if name not in there]
            hint_folder = folder
    if missing:
        raise UserError(f"{hint_folder}: Fashion-MNIST without {', '.join(missing)}", hint=GET_IT)
    if data_dir is not None and not os.path.isdir(data_dir):
        raise UserError(f"--data-dir {data_dir} is not a folder", hint=GET_IT)
    raise UserError(f"no Fashion-MNIST in {data_dir or DEBIAN}", hint=GET_IT)


def _source(root: Path, files: dict[str, str], part: str) -> Source:
    images_path = root / files[f"{PREFIXES[part]}-images-idx3-ubyte"]
    labels_path = root / files[f"{PREFIXES[part]}-labels-idx1-ubyte"]
    with _readable(images_path), _opened(images_path) as file:
        count, height, width = _header(file, 3)
    with _readable(labels_path), _opened(labels_path) as file:
        (n,) = _header(file, 1)
        labels: Labels = np.frombuffer(_exactly(file, n), dtype=np.uint8).astype(np.int64)
        _at_end(file)
        if n != count or n == 0 or labels.max() >= len(CLASSES):
            raise ValueError(f"{n} labels up to {labels.max(initial=0)} for {count} images of {len(CLASSES)} classes")
    shape = (1, height, width)
    return Source(shape, labels, partial(_blocks, images_path, shape))


def _blocks(path: Path, shape: Shape) -> Iterator[Images]:
    with _readable(path), _opened(path) as file:
        left = _header(file, 3)[0]
        while left:
            n = min(left, BLOCK)
            pixels = np.frombuffer(_exactly(file, n * shape[1] * shape[2]), dtype=np.uint8)
            yield pixels.reshape(n, *shape)
            left -= n
        _at_end(file)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Damage of any kind as one line that names the file."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as Fashion-MNIST: {error}", hint="delete the file and fetch it again"
        ) from None


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _header(file: BinaryIO, dimensions: int) -> list[int]:
    """The sizes in an idx header: two zeros, 8 for unsigned bytes, the number of dimensions, a word each."""
    if _exactly(file, 4) != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"not an idx file of unsigned bytes in {dimensions} dimensions")
    return [int(size) for size in np.frombuffer(_exactly(file, 4 * dimensions), dtype=">u4")]


def _exactly(file: BinaryIO, size: int) -> bytes:
    found = file.read(size)
    if len(found) != size:
        raise ValueError("it ends too early")
    return found


def _at_end(file: BinaryIO) -> None:
    if file.read(1):  # reading past the last image also makes gzip compare its checksum
        raise ValueError("it is longer than its header says")
