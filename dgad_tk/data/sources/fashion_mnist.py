"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), 28x28 grey: https://github.com/zalandoresearch/fashion-mnist."""

import gzip
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dgad_tk.data.cache import cached
from dgad_tk.data.download import Remote, downloads, fetch_files
from dgad_tk.data.images.request import Request
from dgad_tk.data.reading import Place, find, readable
from dgad_tk.data.spec import Decoded, Part, Pixels

CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the four files."""
PREFIXES = {"train": "train", "test": "t10k"}
LARGEST_BYTES = 2**30
"""Most bytes of an array. The largest official one has 47 million."""
GET_IT = "install Debian's package dataset-fashion-mnist, give --data-dir ROOT, or --download"


def load(data_dir: Path | None, request: Request) -> Decoded:
    """Fashion-MNIST from its four idx files, gzipped or not, in one folder or below torchvision's root."""
    root, files = _find(data_dir)
    return cached(
        "fashion-mnist", root, sorted(files), lambda: (CLASSES, {part: _read(root, files, part) for part in PREFIXES})
    )


def fetch(root: Path) -> None:
    """Fetch the four files into torchvision's folder below `root`."""
    from torchvision.datasets import FashionMNIST  # knows where they are; imports torch

    remotes = [Remote(FashionMNIST.mirrors[0] + name, name, md5) for name, md5 in FashionMNIST.resources]
    fetch_files(root / "FashionMNIST" / "raw", remotes)


def _find(data_dir: Path | None) -> Place:
    """The folder with the four files, and their names there, gzipped or not."""
    root = data_dir or downloads("fashion-mnist")
    folders = [root / "FashionMNIST" / "raw", root / "raw", root]
    if data_dir is None:
        folders.insert(0, DEBIAN)
    wanted = [f"{prefix}-{kind}-ubyte" for prefix in PREFIXES.values() for kind in ("images-idx3", "labels-idx1")]
    # Unpacked files first: torchvision, which may leave both, reads these.
    places = [
        Place(folder, [name if os.path.isfile(folder / name) else f"{name}.gz" for name in wanted])
        for folder in folders
    ]
    return find("Fashion-MNIST", places, GET_IT)


def _read(root: Path, files: Sequence[str], part: str) -> Iterator[Part]:
    images_path, labels_path = (root / name for name in files if name.startswith(PREFIXES[part]))
    images, labels = _array(images_path, 3), _array(labels_path, 1)
    with readable(labels_path, "Fashion-MNIST"):
        if len(labels) != len(images) or not len(labels) or labels.max() >= len(CLASSES):
            found = f"{len(labels)} labels up to {labels.max(initial=0)}"
            raise ValueError(f"{found} for {len(images)} images of {len(CLASSES)} classes")
    yield Part(images[:, np.newaxis], labels.astype(np.int64))


def _array(path: Path, dimensions: int) -> Pixels:
    """The array in an idx file: two zeros, 8 for uint8, the number of dimensions, their sizes, the values."""
    with readable(path, "Fashion-MNIST"), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        if file.read(4) != bytes([0, 0, 8, dimensions]):
            raise ValueError(f"not an idx file of unsigned bytes in {dimensions} dimensions")
        shape = [int.from_bytes(file.read(4)) for _ in range(dimensions)]
        size = math.prod(shape)
        if size > LARGEST_BYTES:
            raise ValueError(f"it announces {size:,} bytes")
        content = file.read(size + 1)  # one more, so that gzip reaches its checksum
        if len(content) != size:
            raise ValueError("it ends too early" if len(content) < size else "it is longer than its header says")
        return np.frombuffer(content, dtype=np.uint8).reshape(shape)
