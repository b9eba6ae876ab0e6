"""Tiny ImageNet (Stanford CS231n), 64x64 RGB: http://cs231n.stanford.edu/tiny-imagenet-200.zip."""

import os
from dataclasses import replace
from pathlib import Path

from dgad_tk.common import UserError
from dgad_tk.data.cache import cached
from dgad_tk.data.download import downloads
from dgad_tk.data.endings import LeftOut
from dgad_tk.data.fingerprint import SourceFile, source_file
from dgad_tk.data.imagefolder import source_of
from dgad_tk.data.spec import Decoded
from dgad_tk.data.tree import Tree, check_classes, images_below, tree_of

SIZE = 64
FOLDER = "tiny-imagenet-200"
ANNOTATIONS = "val/val_annotations.txt"
GET_IT = (
    f"fetch http://cs231n.stanford.edu/{FOLDER}.zip, unzip it in a folder ROOT and give --data-dir ROOT, "
    f"where ROOT holds {FOLDER}"
)


def load(data_dir: Path | None, image_size: int | None) -> Decoded:
    """Tiny ImageNet as its archive unpacks, or with val/ sorted into class folders; classes are the sorted wnids.

    The archive's val/ plays the test part, since the labels of its test/ are not public. Grey images become RGB.

    Raises:
        UserError: the files are not there, or one of them is damaged.
    """
    root = _find(data_dir)
    left_out = {part: LeftOut(usual=frozenset({".txt"})) for part in ("train", "val")}  # of boxes and labels
    train, other = tree_of(root, "train", left_out["train"]), []
    classes = list(train)
    if os.path.isdir(root / "val" / "images"):
        test = _annotated(root, set(classes), left_out["val"])
        other.append(source_file(root, ANNOTATIONS))
    else:
        test = tree_of(root, "val", left_out["val"])
    for part, tree in (("train", train), ("val", test)):
        check_classes(root, part, classes, tree)
    parts = {"train": train, "test": test}
    decoded = cached(
        "tiny-imagenet",
        root,
        [*other, *(file for part in sorted(parts) for files in parts[part].values() for file in files)],
        salt="",
        build=lambda: (classes, {part: source_of(root, tree, SIZE, exact=True) for part, tree in parts.items()}),
    )
    notes = (left.notes(str(root / part), len(classes)) for part, left in left_out.items())
    return replace(decoded, notes=tuple(note for each in notes for note in each))


def download(data_dir: Path | None) -> None:
    """There is no sum to check the archive against, so it is not fetched.

    Raises:
        UserError: unless it is there already.
    """
    try:
        _find(data_dir)
    except UserError:
        raise UserError("dataset 'tiny-imagenet' cannot be downloaded by this command", hint=GET_IT) from None


def _find(data_dir: Path | None) -> Path:
    """The folder that holds train/ and val/."""
    root = data_dir or downloads("tiny-imagenet")
    for folder in (root / FOLDER, root):
        if os.path.isdir(folder / "train") and os.path.isdir(folder / "val"):
            return folder
    if data_dir is not None and not os.path.isdir(data_dir):
        raise UserError(f"--data-dir {data_dir} is not a folder", hint=GET_IT)
    raise UserError(f"no Tiny ImageNet (train/ and val/) in {root}", hint=GET_IT)


def _annotated(root: Path, classes: set[str], left_out: LeftOut) -> Tree:
    """The images of val/images by class, as the annotations say: a line each of file name, wnid and a box.

    Raises:
        UserError: the annotations cannot be read, or are not those of these images.
    """
    path = root / ANNOTATIONS
    hint = f"unpack {FOLDER}.zip again"
    found = images_below(root, "val/images", left_out, "images")
    files = {os.path.basename(file.name): file for file in found}
    tree: dict[str, list[SourceFile]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", hint=hint) from None
    for number, line in enumerate(lines, 1):
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in classes:
            raise UserError(f"{path}, line {number}: '{wnid:.40}' is no class folder of train/", hint=hint)
        if name not in files:
            raise UserError(f"{path}, line {number}: '{name:.80}' is no image of val/images, or there twice", hint=hint)
        tree.setdefault(wnid, []).append(files.pop(name))
    if files:
        raise UserError(f"{path} does not name {min(files)} (and {len(files) - 1} more)", hint=hint)
    # In the order that class folders would have: the same content then has the same digest.
    return {wnid: sorted(tree[wnid], key=lambda file: file.name) for wnid in sorted(tree)}
