"""Your own images: `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, each a tree for torchvision's ImageFolder."""

import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from dgad_tk.common import UserError, nearest
from dgad_tk.data.cache import cached
from dgad_tk.data.fingerprint import SourceFile, source_file
from dgad_tk.data.spec import Decoded, Images, Labels, Source

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
DEFAULT_SIZE, SMALLEST, LARGEST = 32, 4, 512
LAYOUT = "the folder must hold train/CLASS/image files, and test/CLASS/ or val/CLASS/ likewise"
BLOCK_BYTES = 2**22
THREADS_FROM_BYTES = 4096
"""Mean file size from which threads pay. Two are 2.0 times as fast as one at 90 KB a file, 1.4 times at 7 KB,
but 0.7 times at CIFAR's 1 KB, where most of the work needs the interpreter's lock."""

Tree = dict[str, list[SourceFile]]
"""Class name to its files, both sorted."""


def load(data_dir: Path | None, image_size: int | None) -> Decoded:
    """A tree of class folders, as RGB of one size.

    Images of another size are squeezed whole to `image_size` x `image_size`, not cropped, by Pillow's
    bilinear filter, which averages over all pixels it shrinks (antialiased). Transparency is dropped and EXIF
    rotation is not applied, as in torchvision. With train/, val/ and test/, val/ is the validation split;
    with train/ and val/ only, val/ is the test split.

    Raises:
        UserError: the tree or one of its images is not usable.
    """
    size = DEFAULT_SIZE if image_size is None else image_size
    if not SMALLEST <= size <= LARGEST:
        raise UserError(
            f"image_size must be from {SMALLEST} to {LARGEST}, got {size}",
            hint=f"the default is {DEFAULT_SIZE}",
        )
    if data_dir is None:
        raise UserError("dataset 'imagefolder' needs --data-dir", hint=LAYOUT)
    if not os.path.isdir(data_dir):
        raise UserError(f"--data-dir {data_dir} is not a folder", hint=LAYOUT)
    trees = {part: tree_of(data_dir, folder) for part, folder in _folders(data_dir).items()}
    classes = list(trees["train"])
    for part, tree in trees.items():
        check_classes(data_dir, part, classes, tree)
    decoded = cached(
        "imagefolder",
        data_dir,
        [file for part in sorted(trees) for files in trees[part].values() for file in files],
        # Which folder plays which part is a matter of the names in it, and these are in the key already.
        salt=f"image_size {size}",
        build=lambda: (classes, {part: source_of(data_dir, tree, size) for part, tree in trees.items()}),
    )
    return replace(decoded, image_size=size)


def _folders(data_dir: Path) -> dict[str, str]:
    """Part to folder name."""
    there = {name for name in ("train", "val", "test") if os.path.isdir(data_dir / name)}
    if "train" not in there or len(there) == 1:
        missing = "train/" if "train" not in there else "test/ or val/"
        raise UserError(f"{data_dir} has no {missing}", hint=LAYOUT)
    if "test" not in there:
        return {"train": "train", "test": "val"}
    return {name: name for name in sorted(there)}


def tree_of(data_dir: Path, folder: str) -> Tree:
    """The files of every class below `data_dir/folder`.

    Raises:
        UserError: a folder cannot be read or a class is empty.
    """
    names = sorted(entry.name for entry in entries(data_dir / folder) if is_dir(entry))
    tree = {}
    for name in names:
        tree[name] = sorted(images_below(data_dir, f"{folder}/{name}"), key=lambda file: file.name)
        if not tree[name]:
            raise UserError(
                f"class folder {data_dir / folder / name} has no image",
                hint=f"delete it or fill it; images end in {' '.join(EXTENSIONS)}",
            )
    return tree


def images_below(root: Path, folder: str, ancestors: tuple[Path, ...] = ()) -> Iterator[SourceFile]:
    """The image files in a folder and in those below it, in no order."""
    real = (root / folder).resolve()
    if real in ancestors:
        return  # a link that leads back up
    for entry in entries(root / folder):
        if is_dir(entry):
            yield from images_below(root, f"{folder}/{entry.name}", (*ancestors, real))
        elif entry.name.lower().endswith(EXTENSIONS):
            yield source_file(root, f"{folder}/{entry.name}")


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, without hidden files (`.DS_Store`, `._copy.jpg`)."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}", hint="check its permissions") from None


def is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def check_classes(data_dir: Path, part: str, classes: list[str], tree: Tree) -> None:
    """Two classes at least, and the same in every part.

    Raises:
        UserError: they are not.
    """
    if len(tree) < 2:
        found = f"only '{next(iter(tree))}'" if tree else "none"
        raise UserError(f"{data_dir}: at least 2 class folders are needed for {part}, found {found}", hint=LAYOUT)
    if extra := sorted(tree.keys() - set(classes)):
        raise UserError(
            f"{data_dir}: train lacks class '{extra[0]}' of {part} (and {len(extra) - 1} more)",
            hint=nearest(extra[0], classes) if len(classes) <= 20 else LAYOUT,
        )
    if missing := sorted(set(classes) - tree.keys()):
        raise UserError(
            f"{data_dir}: {part} lacks class '{missing[0]}' of train (and {len(missing) - 1} more)",
            hint="both must have the same class folders",
        )


def source_of(root: Path, tree: Tree, size: int, *, exact: bool = False) -> Source:
    """The images of a tree, class by class; `exact` refuses an image of another size instead of squeezing it."""
    files = [file for files in tree.values() for file in files]
    labels: Labels = np.repeat(np.arange(len(tree)), [len(files) for files in tree.values()]).astype(np.int64)
    return Source((3, size, size), labels, partial(_blocks, root, files, size, exact))


def _blocks(root: Path, files: Sequence[SourceFile], size: int, exact: bool) -> Iterator[Images]:
    n = max(1, BLOCK_BYTES // (3 * size * size))
    pieces = [[root / file.name for file in files[start : start + n]] for start in range(0, len(files), n)]
    if sum(file.size for file in files) < THREADS_FROM_BYTES * len(files):
        yield from (_decode_all(piece, size, exact) for piece in pieces)
        return
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        # Only so many ahead: results must not pile up in memory when the disk is slower than the decoding.
        ahead: deque[Future[Images]] = deque()
        for piece in pieces:
            ahead.append(pool.submit(_decode_all, piece, size, exact))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _decode_all(paths: Sequence[Path], size: int, exact: bool) -> Images:
    block = np.empty((len(paths), 3, size, size), dtype=np.uint8)
    for row, path in enumerate(paths):
        block[row] = decode(path, size, exact=exact).transpose(2, 0, 1)
    return block


def decode(path: Path, size: int, *, exact: bool = False) -> Images:
    """One image file as uint8 `(size, size, 3)`.

    Raises:
        UserError: it is damaged, or has more than 8 bits a channel, or another size where that is to be `exact`.
    """
    from PIL import Image  # not needed to know the names of the datasets

    try:
        with Image.open(path) as file:
            if file.mode[0] in "IF":
                # Pillow would clip to 255, which makes most of such an image white.
                raise UserError(f"{path} has 16-bit or float pixels (mode {file.mode})", hint="convert it to 8 bits")
            if exact and file.size != (size, size):
                width, height = file.size
                raise UserError(f"{path} is {width}x{height}, not {size}x{size}", hint="replace the file or delete it")
            # Straight from a palette with transparency to RGB, the colours are the same, but Pillow warns.
            image = file.convert("RGBA") if file.mode == "P" and "transparency" in file.info else file
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as an image: {reason}", hint="replace the file or delete it") from None
