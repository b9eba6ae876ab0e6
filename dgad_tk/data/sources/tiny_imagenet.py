"""Tiny ImageNet (Stanford CS231n), 64x64 RGB: http://cs231n.stanford.edu/tiny-imagenet-200.zip."""

import os
from dataclasses import replace
from pathlib import Path

from dgad_tk.common import UserError
from dgad_tk.data.download import downloads
from dgad_tk.data.endings import notes_on
from dgad_tk.data.images.request import Request
from dgad_tk.data.reading import NotThereError, accessible
from dgad_tk.data.sources.imagefolder import cached_trees
from dgad_tk.data.spec import Decoded
from dgad_tk.data.tree import Tree, classes_of, images_below, tree_of

SIZE = 64, 64
FOLDER = "tiny-imagenet-200"
ANNOTATIONS = "val/val_annotations.txt"
USUAL = {".txt"}  # boxes and labels
GET_IT = (
    f"fetch http://cs231n.stanford.edu/{FOLDER}.zip, unzip it in a folder ROOT and give --data-dir ROOT, "
    f"where ROOT holds {FOLDER}"
)


def load(data_dir: Path | None, request: Request) -> Decoded:
    """Tiny ImageNet as its archive unpacks, or with val/ sorted into class folders. Classes are the sorted wnids.

    The archive's val/ is the test part, since the labels of its test/ are not public. Grey images become RGB.
    """
    root = _find(data_dir)
    train, notes = tree_of(root, "train", USUAL)
    if annotated := os.path.isdir(root / "val" / "images"):
        test, more = _annotated(root, set(train))
    else:
        test, more = tree_of(root, "val", USUAL)
    classes_of(root, {"train": train, "val": test})
    beside = ANNOTATIONS if annotated else ""
    trees = {"train": train, "test": test}
    return replace(
        cached_trees("tiny-imagenet", root, trees, Request(SIZE), exact=True, beside=beside), notes=notes + more
    )


def fetch(root: Path) -> None:
    """Refuse to fetch the archive: its authors publish no checksum."""
    raise UserError("dataset 'tiny-imagenet' cannot be downloaded by this command", hint=GET_IT)


def _find(data_dir: Path | None) -> Path:
    """The folder that holds train/ and val/."""
    root = data_dir or downloads("tiny-imagenet")
    for folder in (root / FOLDER, root):
        if os.path.isdir(folder / "train") and os.path.isdir(folder / "val"):
            return folder
    raise NotThereError(f"no Tiny ImageNet (train/ and val/) in {root}", hint=GET_IT)


def _annotated(root: Path, classes: set[str]) -> tuple[Tree, tuple[str, ...]]:
    """The images of val/images by class. Each line of the annotations holds file name, wnid and a box."""
    path = root / ANNOTATIONS
    hint = f"unpack {FOLDER}.zip again"
    images, others = images_below(root, "val/images", USUAL)
    files = {os.path.basename(name): name for name in images}
    tree: Tree = {}
    with accessible(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in classes:
            raise UserError(f"{path}, line {number}: '{wnid:.40}' is no class folder of train/", hint=hint)
        if name not in files:
            raise UserError(f"{path}, line {number}: '{name:.80}' is no image of val/images, or there twice", hint=hint)
        tree.setdefault(wnid, []).append(files.pop(name))
    if files:
        raise UserError(f"{path} does not name {min(files)} (and {len(files) - 1} more)", hint=hint)
    # In the order of class folders, so that the same content has the same digest.
    return {wnid: sorted(tree[wnid]) for wnid in sorted(tree)}, notes_on(root / "val", {"images": others})
