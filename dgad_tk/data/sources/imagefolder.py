"""The user's own images, `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, and what other trees of class folders share."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from dgad_tk.data.cache import cached
from dgad_tk.data.decoding import blocks, stretch_of
from dgad_tk.data.images.request import Request
from dgad_tk.data.reading import NotThereError
from dgad_tk.data.spec import Decoded, Labels, Part
from dgad_tk.data.tree import Tree, classes_of, layout, parts_in, tree_of


def load(data_dir: Path | None, request: Request) -> Decoded:
    """A tree of class folders as RGB or grey images of one size.

    Transparency is dropped and EXIF rotation is not applied, as in torchvision. With train/, val/ and test/, val/ is
    the validation split; without test/, val/ is the test split. Other names with the same meaning (`Validation`,
    `dev_set`) work too. Class names are compared in Unicode's composed form.
    """
    if data_dir is None or not os.path.isdir(data_dir):
        raise NotThereError("dataset 'imagefolder' needs --data-dir", hint=layout(request.only))
    folders, notes = parts_in(data_dir, request.only)
    trees: dict[str, Tree] = {}
    for part, folder in folders.items():
        trees[part], left_out = tree_of(data_dir, folder)
        notes += left_out
    classes = classes_of(data_dir, trees, request.least, request.only)
    # The names of parts and classes belong to the cache's key anyway, but as they are on disk. Entries of older
    # versions hold them so.
    salt = request.salt + ("" if all(map(str.isascii, classes)) else " composed")
    found = cached_trees("imagefolder", data_dir, trees, request, salt=salt)
    files = [file for tree in trees.values() for files in tree.values() for file in files]
    return replace(found, notes=notes, stretch=stretch_of(data_dir, files, request))


def class_names(data_dir: Path | None, only: str | None) -> list[str]:
    """The names of the class folders, read without opening a picture; none where there is no such folder.

    Args:
        only: the one split that has to be there; None if there is to be training.

    Raises:
        UserError: it is no folder of class folders.
    """
    if data_dir is None or not os.path.isdir(data_dir):
        return []
    folders, _ = parts_in(data_dir, only)
    return classes_of(data_dir, {part: tree_of(data_dir, folder)[0] for part, folder in folders.items()}, 1)


def cached_trees(
    name: str,
    root: Path,
    trees: Mapping[str, Tree],
    request: Request,
    *,
    exact: bool = False,
    salt: str = "",
    beside: str = "",
) -> Decoded:
    """The decoded images of each part's tree; all trees have the same classes.

    Args:
        name, root, salt: as for `cached`.
        request: the shape of the images.
        exact: refuse an image of another size instead of resizing it.
        beside: another file that the trees depend on.
    """
    files = [file for part in sorted(trees) for files in trees[part].values() for file in files]
    return cached(
        name,
        root,
        [beside, *files] if beside else files,
        lambda: (
            list(trees.get("train") or next(iter(trees.values()))),
            {part: _images(root, tree, request, exact) for part, tree in trees.items()},
        ),
        salt=salt,
    )


def _images(root: Path, tree: Tree, request: Request, exact: bool) -> Iterator[Part]:
    """The images of a tree, class by class."""
    files = [file for files in tree.values() for file in files]
    labels: Labels = np.repeat(np.arange(len(tree)), [len(files) for files in tree.values()]).astype(np.int64)
    done = 0
    for images in blocks(root, files, request, exact):
        yield Part(images, labels[done : done + len(images)])
        done += len(images)
