"""The user's own images, `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, and what other trees of class folders share."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from dgad_tk.common import UserError
from dgad_tk.data.cache import cached
from dgad_tk.data.decoding import blocks
from dgad_tk.data.reading import NotThereError
from dgad_tk.data.spec import Decoded, Labels, Part
from dgad_tk.data.tree import LAYOUT, Tree, classes_of, parts_in, tree_of

SMALLEST, LARGEST = 4, 512


def load(data_dir: Path | None, image_size: int) -> Decoded:
    """A tree of class folders as RGB images of `image_size` x `image_size`.

    Images are resized without cropping by Pillow's bilinear filter, which averages over all pixels where it shrinks.
    Transparency is dropped and EXIF rotation is not applied, as in torchvision. With train/, val/ and test/, val/ is
    the validation split; with train/ and val/ only, val/ is the test split. Other names with the same meaning
    (`Validation`, `dev_set`) work too. Class names are compared in Unicode's composed form.
    """
    if not SMALLEST <= image_size <= LARGEST:
        raise UserError(
            f"image_size must be from {SMALLEST} to {LARGEST}, got {image_size}", hint="leave it out for the default"
        )
    if data_dir is None or not os.path.isdir(data_dir):
        raise NotThereError("dataset 'imagefolder' needs --data-dir", hint=LAYOUT)
    folders, notes = parts_in(data_dir)
    trees: dict[str, Tree] = {}
    for part, folder in folders.items():
        trees[part], left_out = tree_of(data_dir, folder)
        notes += left_out
    classes = classes_of(data_dir, trees)
    # The names of parts and classes belong to the cache's key anyway, but as they are on disk. Entries of older
    # versions hold them so.
    salt = f"image_size {image_size}" + ("" if all(map(str.isascii, classes)) else " composed")
    return replace(cached_trees("imagefolder", data_dir, trees, image_size, salt=salt), notes=notes)


def cached_trees(
    name: str,
    root: Path,
    trees: Mapping[str, Tree],
    size: int,
    *,
    exact: bool = False,
    salt: str = "",
    beside: str = "",
) -> Decoded:
    """The decoded images of each part's tree; all trees have the same classes.

    Args:
        name, root, salt: as for `cached`.
        exact: refuse an image of another size instead of resizing it.
        beside: another file that the trees depend on.
    """
    files = [file for part in sorted(trees) for files in trees[part].values() for file in files]
    return cached(
        name,
        root,
        [beside, *files] if beside else files,
        lambda: (list(trees["train"]), {part: _images(root, tree, size, exact) for part, tree in trees.items()}),
        salt=salt,
    )


def _images(root: Path, tree: Tree, size: int, exact: bool) -> Iterator[Part]:
    """The images of a tree, class by class."""
    files = [file for files in tree.values() for file in files]
    labels: Labels = np.repeat(np.arange(len(tree)), [len(files) for files in tree.values()]).astype(np.int64)
    done = 0
    for images in blocks(root, files, size, exact):
        yield Part(images, labels[done : done + len(images)])
        done += len(images)
