"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), 32x32 RGB: https://www.cs.toronto.edu/~kriz/cifar.html."""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dgad_tk.common import UserError
from dgad_tk.data import plain_pickle
from dgad_tk.data.cache import cached
from dgad_tk.data.download import Remote, downloads, fetch_archive
from dgad_tk.data.fingerprint import source_file
from dgad_tk.data.reading import at_end, exactly, readable
from dgad_tk.data.spec import Decoded, Images, Labels, Shape, Source

SHAPE: Shape = (3, 32, 32)
PIXELS = 3 * 32 * 32
BLOCK = 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """One of the two forms in which the authors give the files away.

    Attributes:
        archive: what they give away.
        folder: what it unpacks to.
        parts: "train" and "test" to file names.
        names: file with the class names.
        pickled: pickles, else records of label bytes and pixel bytes.
    """

    archive: str
    folder: str
    parts: Mapping[str, tuple[str, ...]]
    names: str
    pickled: bool

    @property
    def files(self) -> list[str]:
        """All that is read."""
        return [self.names, *(name for part in sorted(self.parts) for name in self.parts[part])]


@dataclass(frozen=True)
class Cifar:
    """What tells CIFAR-10 and CIFAR-100 apart.

    Attributes:
        name: row of DATASETS.
        title: as it is written.
        classes: how many.
        label_key: of the labels in a pickle; CIFAR-100 has coarse ones too.
        names_key: of the class names in a pickle.
        label_bytes: in front of the pixels of a binary record; the last one is the label.
        layouts: the one torchvision reads first.
        md5: of the official pickles, which hold no checksum of their own.
    """

    name: str
    title: str
    classes: int
    label_key: str
    names_key: str
    label_bytes: int
    layouts: tuple[Layout, Layout]
    md5: Mapping[str, str]

    @property
    def get_it(self) -> str:
        """For a hint."""
        folders = " or ".join(layout.folder for layout in self.layouts)
        return f"give --data-dir ROOT, where ROOT holds {folders} unpacked, or --download"


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    classes=10,
    label_key="labels",
    names_key="label_names",
    label_bytes=1,
    layouts=(
        Layout(
            "cifar-10-python.tar.gz",
            "cifar-10-batches-py",
            {"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)},
            "batches.meta",
            pickled=True,
        ),
        Layout(
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test": ("test_batch.bin",)},
            "batches.meta.txt",
            pickled=False,
        ),
    ),
    md5={
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
)
CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    classes=100,
    label_key="fine_labels",
    names_key="fine_label_names",
    label_bytes=2,
    layouts=(
        Layout(
            "cifar-100-python.tar.gz",
            "cifar-100-python",
            {"train": ("train",), "test": ("test",)},
            "meta",
            pickled=True,
        ),
        Layout(
            "cifar-100-binary.tar.gz",
            "cifar-100-binary",
            {"train": ("train.bin",), "test": ("test.bin",)},
            "fine_label_names.txt",
            pickled=False,
        ),
    ),
    md5={
        "meta": "7973b15100ade9c7d40fb424638fde48",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
)


def load(which: Cifar, data_dir: Path | None, image_size: int | None) -> Decoded:
    """CIFAR from its pickles, which are read without unpickling, or from its binary version.

    Raises:
        UserError: the files are not there, or damaged, or hold something else.
    """
    root, layout = _find(which, data_dir)
    return cached(
        which.name,
        root,
        [source_file(root, name) for name in layout.files],
        salt="",
        build=lambda: _build(which, root, layout),
    )


def download(which: Cifar, data_dir: Path | None) -> None:
    """Fetch and unpack the pickles below `data_dir`, or below the cache, unless either version is to be found.

    Raises:
        UserError: no network, or what came is not CIFAR.
    """
    root = data_dir or downloads(which.name)
    if any(not _missing(folder, layout) for folder, layout in _candidates(which, root)):
        return
    from torchvision import datasets  # knows where they are; imports torch

    official = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[which.name]
    fetch_archive(root, Remote(official.url, official.filename, official.tgz_md5), official.base_folder)


def _candidates(which: Cifar, root: Path) -> Iterator[tuple[Path, Layout]]:
    for layout in which.layouts:
        yield root / layout.folder, layout
        yield root, layout


def _missing(folder: Path, layout: Layout) -> list[str]:
    return [name for name in layout.files if not os.path.isfile(folder / name)]


def _find(which: Cifar, data_dir: Path | None) -> tuple[Path, Layout]:
    """The folder with the files, and which files they are."""
    root = data_dir or downloads(which.name)
    incomplete = ""
    for folder, layout in _candidates(which, root):
        missing = _missing(folder, layout)
        if not missing:
            return folder, layout
        if len(missing) < len(layout.files) and not incomplete:
            incomplete = f"{folder}: {which.title} without {', '.join(missing)}"
    for layout in which.layouts:
        if not incomplete and os.path.isfile(root / layout.archive):
            raise UserError(
                f"{root / layout.archive} is not unpacked", hint=f"tar -xzf {layout.archive} in {root}, then again"
            )
    if data_dir is not None and not os.path.isdir(data_dir):
        raise UserError(f"--data-dir {data_dir} is not a folder", hint=which.get_it)
    raise UserError(incomplete or f"no {which.title} in {root}", hint=which.get_it)


def _build(which: Cifar, root: Path, layout: Layout) -> tuple[list[str], dict[str, Source]]:
    for name in layout.files:
        _compare(which, root / name)
    names = _class_names(which, root / layout.names, layout.pickled)
    sources = {}
    for part, files in layout.parts.items():
        paths = [root / file for file in files]
        labels = np.concatenate([_labels(which, path, layout.pickled) for path in paths])
        sources[part] = Source(SHAPE, labels, partial(_blocks, which, paths, layout.pickled))
    return names, sources


def _compare(which: Cifar, path: Path) -> None:
    """Say so where a pickle is not the official one: a flipped bit shows nowhere else."""
    if path.name in which.md5:
        with readable(path, which.title), path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != which.md5[path.name]:
            _log.warning("%s is not the official file of %s: its MD5 is %s", path, which.title, found)


def _class_names(which: Cifar, path: Path, pickled: bool) -> list[str]:
    with readable(path, f"{which.title}'s class names"):
        if pickled:
            with path.open("rb") as file:
                names = [_text(name) for name in _list(_values(file), which.names_key)]
        else:
            names = path.read_text(encoding="utf-8").split()
        if len(names) != which.classes or len(set(names)) != which.classes:
            raise ValueError(f"{len(set(names))} names for {which.classes} classes")
        return names


def _labels(which: Cifar, path: Path, pickled: bool) -> Labels:
    """Of one file, int64 `(N,)`; the pixels are looked at for their number only.

    Raises:
        UserError: damaged, or other than so many labels for so many images.
    """
    with readable(path, which.title), path.open("rb") as file:
        if pickled:
            values = _values(file)
            found = _list(values, which.label_key)
            if not all(type(label) is int and abs(label) < 2**31 for label in found):
                raise ValueError(f"'{which.label_key}' holds something else than small integers")
            labels: Labels = np.array(found, dtype=np.int64)
            pixels = _pixels(values)
            if pixels.shape[0] != len(labels):
                raise ValueError(f"{len(labels)} labels for {pixels.shape[0]} images")
        else:
            size, record = os.fstat(file.fileno()).st_size, which.label_bytes + PIXELS
            if size % record:
                raise ValueError(f"{size} bytes are not a whole number of records of {record}")
            labels = np.empty(size // record, dtype=np.int64)
            for row in range(len(labels)):
                file.seek(row * record)
                labels[row] = exactly(file, which.label_bytes)[-1]
        if not len(labels) or labels.min() < 0 or labels.max() >= which.classes:
            bounds = f"from {labels.min()} to {labels.max()}" if len(labels) else ""
            raise ValueError(f"{len(labels)} labels {bounds} for {which.classes} classes")
        return labels


def _blocks(which: Cifar, paths: Iterable[Path], pickled: bool) -> Iterator[Images]:
    for path in paths:
        with readable(path, which.title), path.open("rb") as file:
            yield from (_pickled_blocks(file) if pickled else _binary_blocks(file, which.label_bytes))


def _binary_blocks(file: BinaryIO, label_bytes: int) -> Iterator[Images]:
    record = label_bytes + PIXELS
    while block := file.read(BLOCK * record):
        if len(block) % record:
            raise ValueError("it ends too early")
        yield np.frombuffer(block, dtype=np.uint8).reshape(-1, record)[:, label_bytes:].reshape(-1, *SHAPE)


def _pickled_blocks(file: BinaryIO) -> Iterator[Images]:
    pixels = _pixels(_values(file))
    left, rest = pixels.shape[0], b""
    for piece in [pixels.data] if isinstance(pixels.data, bytes) else pixels.data.pieces(file):
        rest += piece
        n = len(rest) // PIXELS
        left -= n
        yield np.frombuffer(rest, dtype=np.uint8, count=n * PIXELS).reshape(n, *SHAPE)
        rest = rest[n * PIXELS :]
    if left or rest:
        raise ValueError(f"the images are {'fewer' if left > 0 else 'more'} than announced")


def _values(file: BinaryIO) -> dict[str, object]:
    """The dict that each of the pickles is, its keys as text."""
    found = plain_pickle.read(file)
    at_end(file)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not a dict")
    return {_text(key): value for key, value in found.items()}


def _list(values: Mapping[str, object], key: str) -> list[object]:
    found = values.get(key)
    if not isinstance(found, list):
        raise ValueError(f"it holds no list '{key}'")
    return found


def _pixels(values: Mapping[str, object]) -> plain_pickle.Array:
    found = values.get("data")
    if not isinstance(found, plain_pickle.Array):
        raise ValueError("it holds no array 'data'")
    if found.kind != "u1" or found.fortran or len(found.shape) != 2 or found.shape[1] != PIXELS:
        raise ValueError(f"'data' is {found.kind} {found.shape}, not rows of {PIXELS} bytes")
    # Of an encoded string, only reading it tells how many bytes it stands for.
    size = len(found.data) if isinstance(found.data, bytes) else None if found.data.encoded else found.data.size
    if size is not None and size != found.shape[0] * PIXELS:
        raise ValueError(f"{size} bytes for {found.shape[0]} images")
    return found


def _text(value: object) -> str:
    if not isinstance(value, bytes | str):
        raise ValueError(f"a {type(value).__name__} where text belongs")
    return value.decode("utf-8") if isinstance(value, bytes) else value
