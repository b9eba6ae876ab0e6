"""The class folders of one part: which files they hold, by class."""

import os
from collections.abc import Iterator
from pathlib import Path

from dgad_tk.common import UserError, nearest
from dgad_tk.data.endings import LeftOut, by_ending, readable_endings
from dgad_tk.data.fingerprint import SourceFile, source_file
from dgad_tk.data.parts import LAYOUT
from dgad_tk.names import check_class_name, composed

_HIDDEN = {"Thumbs.db", "desktop.ini", "__MACOSX"}

Tree = dict[str, list[SourceFile]]
"""Class name, composed, to its files, both sorted. The files keep the names that they have on disk."""


def tree_of(data_dir: Path, folder: str, left_out: LeftOut) -> Tree:
    """The files of every class below `data_dir/folder`.

    Args:
        left_out: told of the files that are not used.

    Raises:
        UserError: a folder cannot be read, a class is empty, or a name cannot be a class's.
    """
    folders: dict[str, str] = {}
    for entry in sorted(entries(data_dir / folder), key=lambda entry: entry.name):
        if not is_dir(entry):
            left_out.add_beside(entry.name)
            continue
        check_class_name(entry.name, str(data_dir / folder))
        name = composed(entry.name)
        if name in folders:
            raise UserError(
                f"{data_dir / folder}: two class folders are called '{name}', in different Unicode forms "
                f"({folders[name]!a} and {entry.name!a}; one is NFC, composed)",
                hint="move the files of one into the other",
            )
        folders[name] = entry.name
    return {name: _files_of(data_dir, folder, name, folders[name], left_out) for name in sorted(folders)}


def _files_of(data_dir: Path, folder: str, name: str, on_disk: str, left_out: LeftOut) -> list[SourceFile]:
    found = sorted(images_below(data_dir, f"{folder}/{on_disk}", left_out, name), key=lambda file: file.name)
    if not found:
        others = f", only {by_ending(left_out.inside[name])}" if name in left_out.inside else ""
        raise UserError(
            f"class folder {data_dir / folder / name} has no image that can be read{others}",
            hint=f"fill it or take it away; images end in {' '.join(readable_endings())}",
        )
    return found


def images_below(
    root: Path, folder: str, left_out: LeftOut, group: str, ancestors: tuple[Path, ...] = ()
) -> Iterator[SourceFile]:
    """The image files in a folder and in those below it, in no order.

    Args:
        left_out: told of the other files.
        group: under which class it counts them.
    """
    real = (root / folder).resolve()
    if real in ancestors:
        return  # a link that leads back up
    for entry in entries(root / folder):
        if is_dir(entry):
            yield from images_below(root, f"{folder}/{entry.name}", left_out, group, (*ancestors, real))
        elif entry.name.lower().endswith(readable_endings()) and not _is_device(entry):
            yield source_file(root, f"{folder}/{entry.name}")
        else:
            left_out.add(group, entry.name)


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
