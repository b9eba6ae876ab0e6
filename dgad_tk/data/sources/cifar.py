"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), 32x32 RGB: https://www.cs.toronto.edu/~kriz/cifar.html."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dgad_tk.data.cache import cached
from dgad_tk.data.download import Remote, downloads, fetch_archive
from dgad_tk.data.images.request import Request
from dgad_tk.data.reading import Place, find, readable
from dgad_tk.data.sources import plain_pickle
from dgad_tk.data.sources.plain_pickle import Call, as_bytes, as_text
from dgad_tk.data.spec import Decoded, Part

PIXELS = 3 * 32 * 32
BLOCK = 1024
_log = logging.getLogger(__name__)


class Form(NamedTuple):
    """One of the two published forms: the archive, the folder in it, the file of class names, the ending of the others.

    Pickles have no ending. Records, which are label bytes and pixel bytes, end in `.bin`.
    """

    archive: str
    folder: str
    names: str
    ending: str


@dataclass(frozen=True)
class Cifar:
    """What distinguishes CIFAR-10 and CIFAR-100.

    Attributes:
        name: row of DATASETS.
        title: name in messages.
        classes: their number.
        prefix: of the keys of labels and class names in a pickle; CIFAR-100 has coarse labels too.
        label_bytes: before the pixels of a record; the last one is the label.
        parts: file names without ending of "train" and "test".
        layouts: the pickles, which torchvision reads, and the records.
        md5: of the official pickles by file name, since these hold no checksum.
    """

    name: str
    title: str
    classes: int
    prefix: str
    label_bytes: int
    parts: Mapping[str, Sequence[str]]
    layouts: tuple[Form, Form]
    md5: Mapping[str, str]

    def files(self, layout: Form) -> list[str]:
        """All files that are read: the class names, and the images of both parts."""
        return [layout.names, *(name + layout.ending for part in sorted(self.parts) for name in self.parts[part])]


CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    classes=10,
    prefix="",
    label_bytes=1,
    parts={"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]},
    layouts=(
        Form("cifar-10-python.tar.gz", "cifar-10-batches-py", "batches.meta", ""),
        Form("cifar-10-binary.tar.gz", "cifar-10-batches-bin", "batches.meta.txt", ".bin"),
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
    prefix="fine_",
    label_bytes=2,
    parts={"train": ["train"], "test": ["test"]},
    layouts=(
        Form("cifar-100-python.tar.gz", "cifar-100-python", "meta", ""),
        Form("cifar-100-binary.tar.gz", "cifar-100-binary", "fine_label_names.txt", ".bin"),
    ),
    md5={
        "meta": "7973b15100ade9c7d40fb424638fde48",
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
)


def load(which: Cifar, data_dir: Path | None, request: Request) -> Decoded:
    """CIFAR from its pickles, read without running anything, or from its binary version."""
    root = data_dir or downloads(which.name)
    folders = " or ".join(layout.folder for layout in which.layouts)
    hint = f"give --data-dir ROOT, where ROOT holds {folders} unpacked, or --download"
    for layout in which.layouts:
        if os.path.isfile(root / layout.archive):
            hint = f"{layout.archive} is not unpacked: tar -xzf {layout.archive} in {root}, then again"
    places = [Place(folder, which.files(layout)) for layout in which.layouts for folder in (root / layout.folder, root)]
    place = find(which.title, places, hint)
    return cached(which.name, place.folder, place.files, lambda: _build(which, place))


def fetch(which: Cifar, root: Path) -> None:
    """Fetch and unpack the pickles."""
    from torchvision import datasets  # knows where they are; imports torch

    official = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[which.name]
    fetch_archive(root, Remote(official.url, official.filename, official.tgz_md5), official.base_folder)


def _build(which: Cifar, place: Place) -> tuple[list[str], dict[str, Iterator[Part]]]:
    pickles, records = which.layouts
    layout, read = (pickles, _unpickled) if pickles.names in place.files else (records, _recorded)
    paths = {part: [place.folder / f"{name}{layout.ending}" for name in names] for part, names in which.parts.items()}
    names = _class_names(which, place.folder / layout.names)
    return names, {part: _checked(which, paths[part], read) for part in paths}


def _class_names(which: Cifar, path: Path) -> list[str]:
    with readable(path, f"{which.title}'s class names"):
        if path.suffix == ".txt":
            names = path.read_text(encoding="utf-8").split()
        else:
            names = [as_text(name) for name in _list(_values(which, path), f"{which.prefix}label_names")]
        if len(names) != which.classes or len(set(names)) != which.classes:
            raise ValueError(f"{len(set(names))} names for {which.classes} classes")
        return names


_Batch = tuple[bytes, list[object]]
"""The pixels of some images in one string, and their labels."""


def _checked(which: Cifar, paths: list[Path], read: Callable[[Cifar, Path], Iterator[_Batch]]) -> Iterator[Part]:
    for path in paths:
        with readable(path, which.title):
            for pixels, labels in read(which, path):
                if not labels or not all(type(label) is int and 0 <= label < which.classes for label in labels):
                    raise ValueError(
                        f"its {len(labels)} labels are not all whole numbers from 0 to {which.classes - 1}"
                    )
                if len(pixels) != len(labels) * PIXELS:
                    raise ValueError(f"{len(labels)} labels for {len(pixels) / PIXELS:g} images")
                images = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, 3, 32, 32)
                yield Part(images, np.array(labels, dtype=np.int64))


def _recorded(which: Cifar, path: Path) -> Iterator[_Batch]:
    record = which.label_bytes + PIXELS
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size or size % record:
            raise ValueError(f"{size} bytes are not a whole number of records of {record}")
        while block := file.read(BLOCK * record):
            rows = np.frombuffer(block, dtype=np.uint8).reshape(-1, record)
            yield rows[:, which.label_bytes :].tobytes(), rows[:, which.label_bytes - 1].tolist()


def _unpickled(which: Cifar, path: Path) -> Iterator[_Batch]:
    values = _values(which, path)
    match values.get("data"):
        # numpy writes a version, the shape, the dtype, whether the order is Fortran's, and the bytes.
        case Call(state=(_, (int(), 3072), Call(arguments=("u1" | b"u1", *_)), 0, pixels)):
            yield as_bytes(pixels), _list(values, f"{which.prefix}labels")
        case _:
            raise ValueError(f"it holds no array 'data' of rows of {PIXELS} bytes")


def _values(which: Cifar, path: Path) -> dict[str, object]:
    """The dict in a pickle. Only the MD5 shows a flipped bit."""
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5 != which.md5[path.name]:
            _log.warning("%s is not the official file of %s: its MD5 is %s", path, which.title, md5)
        file.seek(0)
        found = plain_pickle.read(file)
        if file.read(1):
            raise ValueError("it is longer than its pickle")
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not a dict")
    return found


def _list(values: Mapping[str, object], key: str) -> list[object]:
    found = values.get(key)
    if not isinstance(found, list):
        raise ValueError(f"it holds no list '{key}'")
    return found
