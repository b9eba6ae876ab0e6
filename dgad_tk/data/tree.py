"""The class folders of one part: which files they hold, by class."""

import os
from collections.abc import Iterator, Set
from pathlib import Path

from dgad_tk.common import UserError, nearest
from dgad_tk.data.endings import by_ending, ending_of, notes_on, readable_endings
from dgad_tk.data.parts import LAYOUT
from dgad_tk.names import check_class_name, composed

_HIDDEN = {"Thumbs.db", "desktop.ini", "__MACOSX"}

Tree = dict[str, list[str]]
"""Class name, composed, to its files, both sorted. The files are paths below the dataset's folder, as on disk."""


def tree_of(root: Path, folder: str, usual: Set[str] = frozenset()) -> tuple[Tree, tuple[str, ...]]:
    """The files of every class below `root/folder`, and notes on the files that are not used.

    Args:
        usual: endings of files that belong there and that no note mentions.

    Raises:
        UserError: a folder cannot be read, a class is empty, or a name cannot be a class's.
    """
    on_disk: dict[str, str] = {}
    beside = []
    for entry in sorted(entries(root / folder), key=lambda entry: entry.name):
        if not is_dir(entry):
            if ending_of(entry.name) not in usual:
                beside.append(entry.name)
            continue
        check_class_name(entry.name, str(root / folder))
        name = composed(entry.name)
        if name in on_disk:
            raise UserError(
                f"{root / folder}: two class folders are called '{name}', in different Unicode forms "
                f"({on_disk[name]!a} and {entry.name!a}; one is NFC, composed)",
                hint="move the files of one into the other",
            )
        on_disk[name] = entry.name
    images, others = {}, {}
    for name in sorted(on_disk):
        images[name], others[name] = images_below(root, f"{folder}/{on_disk[name]}", usual)
        if not images[name]:
            only = f", only {by_ending(others[name])}" if others[name] else ""
            raise UserError(
                f"class folder {root / folder / name} has no image that can be read{only}",
                hint=f"fill it or take it away; images end in {' '.join(readable_endings())}",
            )
    return images, notes_on(root / folder, others, beside)


def images_below(root: Path, folder: str, usual: Set[str] = frozenset()) -> tuple[list[str], list[str]]:
    """The image files in a folder and in those below it, sorted, and the other files without a `usual` ending."""
    images, others = [], []
    for name, entry in _files_below(root, folder):
        if name.lower().endswith(readable_endings()) and not _is_device(entry):
            images.append(name)
        elif ending_of(name) not in usual:
            others.append(name)
    return sorted(images), others


def _files_below(root: Path, folder: str, ancestors: tuple[Path, ...] = ()) -> Iterator[tuple[str, os.DirEntry[str]]]:
    real = (root / folder).resolve()
    if real in ancestors:
        return  # a link that leads back up
    for entry in entries(root / folder):
        name = f"{folder}/{entry.name}"
        if is_dir(entry):
            yield from _files_below(root, name, (*ancestors, real))
        else:
            yield name, entry


def _is_device(entry: os.DirEntry[str]) -> bool:
    """Whether it is a pipe or a socket, which to open would mean to wait for ever. A dead link is none."""
    return not entry.is_file() and os.path.exists(entry)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, without what systems hide there (`.DS_Store`, `._copy.jpg`, `Thumbs.db`)."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".") and entry.name not in _HIDDEN]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}", hint="check its permissions") from None


def is_dir(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def check_classes(root: Path, trees: dict[str, Tree]) -> list[str]:
    """The classes of "train": two at least, and the same in every part.

    Raises:
        UserError: they are not.
    """
    classes = list(trees["train"])
    for part, tree in trees.items():
        if len(tree) < 2:
            found = f"only '{next(iter(tree))}'" if tree else "none"
            raise UserError(f"{root}: at least 2 class folders are needed for {part}, found {found}", hint=LAYOUT)
        if extra := sorted(tree.keys() - set(classes)):
            raise UserError(
                f"{root}: train lacks class '{extra[0]}' of {part} (and {len(extra) - 1} more)",
                hint=nearest(extra[0], classes) if len(classes) <= 20 else LAYOUT,
            )
        if missing := sorted(set(classes) - tree.keys()):
            raise UserError(
                f"{root}: {part} lacks class '{missing[0]}' of train (and {len(missing) - 1} more)",
                hint="both must have the same class folders",
            )
    return classes
