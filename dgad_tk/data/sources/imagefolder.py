"""Your own images: `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, each a tree for torchvision's ImageFolder."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dgad_tk.common import UserError
from dgad_tk.data.cache import cached
from dgad_tk.data.decoding import blocks
from dgad_tk.data.reading import NotThereError
from dgad_tk.data.spec import Decoded, Labels, Part
from dgad_tk.data.tree import LAYOUT, Tree, check_classes, parts_in, tree_of

DEFAULT_SIZE, SMALLEST, LARGEST = 32, 4, 512


def load(data_dir: Path | None, image_size: int | None) -> Decoded:
    """A tree of class folders, as RGB of one size.

    Images of another size are squeezed to `image_size` x `image_size` and not cropped. Pillow's bilinear filter does
    that; where it shrinks, it averages over all pixels (antialiasing). Transparency is dropped and EXIF rotation is not
    applied, as in torchvision. With train/, val/ and test/, val/ is the validation split; with train/ and val/ only,
    val/ is the test split. Other names that plainly mean one of these (`Validation`, `dev_set`) work as well. Class
    names are compared in Unicode's composed form.
    """
    size = DEFAULT_SIZE if image_size is None else image_size
    if not SMALLEST <= size <= LARGEST:
        raise UserError(
            f"image_size must be from {SMALLEST} to {LARGEST}, got {size}",
            hint=f"the default is {DEFAULT_SIZE}",
        )
    if data_dir is None or not os.path.isdir(data_dir):
        raise NotThereError("dataset 'imagefolder' needs --data-dir", hint=LAYOUT)
    folders, notes = parts_in(data_dir)
    trees: dict[str, Tree] = {}
    for part, folder in folders.items():
        trees[part], left_out = tree_of(data_dir, folder)
        notes += left_out
    classes = check_classes(data_dir, trees)
    decoded = cached(
        "imagefolder",
        data_dir,
        [file for part in sorted(trees) for files in trees[part].values() for file in files],
        lambda: (classes, {part: images_of(data_dir, tree, size) for part, tree in trees.items()}),
        # Which folder plays which part is a matter of the names in it, and these are in the key already. So are the
        # class names, but as they are on disk: an entry of before they were composed has them so.
        salt=f"image_size {size}" + ("" if all(map(str.isascii, classes)) else " composed"),
    )
    return replace(decoded, image_size=size, notes=notes)


def images_of(root: Path, tree: Tree, size: int, *, exact: bool = False) -> Iterator[Part]:
    """The images of a tree, class by class. With `exact`, an image of another size is refused and not squeezed."""
    files = [file for files in tree.values() for file in files]
    labels: Labels = np.repeat(np.arange(len(tree)), [len(files) for files in tree.values()]).astype(np.int64)
    done = 0
    for images in blocks(root, files, size, exact):
        yield Part(images, labels[done : done + len(images)])
        done += len(images)
