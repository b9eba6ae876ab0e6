"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), 28x28 grey: https://github.com/zalandoresearch/fashion-mnist."""

import gzip
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from dgad_tk.common import UserError
from dgad_tk.data.cache import cached
from dgad_tk.data.download import Remote, downloads, fetch_files
from dgad_tk.data.fingerprint import source_file
from dgad_tk.data.reading import at_end, exactly, readable
from dgad_tk.data.spec import Decoded, Images, Labels, Shape, Source

CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the four files."""
PREFIXES = {"train": "train", "test": "t10k"}
GET_IT = "install Debian's package dataset-fashion-mnist, give --data-dir ROOT, or --download"
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


def download(data_dir: Path | None) -> None:
    """Fetch the four files to torchvision's place below `data_dir`, or below the cache, unless they are to be found.

    Raises:
        UserError: no network, or what came is not Fashion-MNIST.
    """
    with suppress(UserError):
        _find(data_dir)
        return
    from torchvision.datasets import FashionMNIST  # knows where they are; imports torch

    remotes = [Remote(FashionMNIST.mirrors[0] + name, name, md5) for name, md5 in FashionMNIST.resources]
    fetch_files((data_dir or downloads("fashion-mnist")) / "FashionMNIST" / "raw", remotes)


def _find(data_dir: Path | None) -> tuple[Path, dict[str, str]]:
    """The folder with the four files, and the name of each as it is there (packed or not)."""
    wanted = [f"{prefix}-{kind}" for prefix in PREFIXES.values() for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    root = data_dir or downloads("fashion-mnist")
    folders = [root / "FashionMNIST" / "raw", root / "raw", root]
    if data_dir is None:
        folders.insert(0, DEBIAN)
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
    raise UserError(f"no Fashion-MNIST in {data_dir or f'{DEBIAN} or {root}'}", hint=GET_IT)


def _source(root: Path, files: dict[str, str], part: str) -> Source:
    images_path = root / files[f"{PREFIXES[part]}-images-idx3-ubyte"]
    labels_path = root / files[f"{PREFIXES[part]}-labels-idx1-ubyte"]
    with readable(images_path, "Fashion-MNIST"), _opened(images_path) as file:
        count, height, width = _header(file, 3)
    with readable(labels_path, "Fashion-MNIST"), _opened(labels_path) as file:
        (n,) = _header(file, 1)
        labels: Labels = np.frombuffer(exactly(file, n), dtype=np.uint8).astype(np.int64)
        at_end(file)
        if n != count or n == 0 or labels.max() >= len(CLASSES):
            raise ValueError(f"{n} labels up to {labels.max(initial=0)} for {count} images of {len(CLASSES)} classes")
    shape = (1, height, width)
    return Source(shape, labels, partial(_blocks, images_path, shape))


def _blocks(path: Path, shape: Shape) -> Iterator[Images]:
    with readable(path, "Fashion-MNIST"), _opened(path) as file:
        left = _header(file, 3)[0]
        while left:
            n = min(left, BLOCK)
            pixels = np.frombuffer(exactly(file, n * shape[1] * shape[2]), dtype=np.uint8)
            yield pixels.reshape(n, *shape)
            left -= n
        at_end(file)


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _header(file: BinaryIO, dimensions: int) -> list[int]:
    """The sizes in an idx header: two zeros, 8 for unsigned bytes, the number of dimensions, a word each."""
    if exactly(file, 4) != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"not an idx file of unsigned bytes in {dimensions} dimensions")
    return [int(size) for size in np.frombuffer(exactly(file, 4 * dimensions), dtype=">u4")]
