"""Folders of images: which folder is which part of a dataset, and which files belong to each class."""

import os
import re
from collections.abc import Iterator, Set
from pathlib import Path

from dgad_tk.common import UserError, nearest
from dgad_tk.data.endings import by_ending, counted, ending_of, first_names, is_image, notes_on, readable_endings
from dgad_tk.data.reading import accessible
from dgad_tk.strangers.names import RENAME, check_utf8, composed, shown

LAYOUT = "the folder must hold train/CLASS/image files, and test/CLASS/ or val/CLASS/ likewise"
ALONE = "test/CLASS/image files are enough, or val/CLASS/, or the class folders alone"


def layout(only: str | None) -> str:
    """What a folder must hold, as a hint: less where one part is enough.

    Args:
        only: as for `parts_in`.
    """
    return ALONE if only == "test" else LAYOUT


_PART_OF = {  # the names of Hugging Face's datasets
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_FILLERS = {"", "set", "data", "dataset", "split", "images", "imgs", "img", "image"}
_HIDDEN = {"Thumbs.db", "desktop.ini", "__MACOSX"}

Tree = dict[str, list[str]]
"""Files per class, both sorted. Class names are in Unicode's composed form; files are paths in the dataset's folder."""


def part_of(name: str) -> str | None:
    """The part that a folder's name means: "val" for `Validation`, `dev_set` or `val2017`; else None."""
    words = [word for word in re.split(r"[\W_\d]+", name.lower()) if word not in _FILLERS]
    if len(words) != 1:
        return None
    return _PART_OF.get(words[0]) or _PART_OF.get(re.sub("(set|data|images)$", "", words[0]))


def parts_in(root: Path, only: str | None = None) -> tuple[dict[str, str], tuple[str, ...]]:
    """The folder of each part in `root`, and notes on what belongs to none.

    Where there are no test images, the validation images are the test part, if that is asked for.

    Args:
        only: the one part that has to be there. As "test", class folders that lie in `root` itself do: the folder of
            the part is then empty. None if there is to be training and testing.

    Raises:
        UserError: there is no folder to train or to test on, or two folders have the name of one part.
    """
    found: dict[str, list[str]] = {}
    loose = []
    for entry in sorted(_entries(root), key=lambda entry: entry.name):
        if _is_dir(entry):
            found.setdefault(part_of(entry.name) or "", []).append(entry.name)
        elif is_image(entry.name):
            loose.append(entry.name)
    others = found.pop("", [])
    for part, claims in found.items():
        if len(claims) > 1:
            raise UserError(
                f"{root}: both '{claims[0]}' and '{claims[1]}' could be the {part} images",
                hint="move one of them away, or put them into one folder",
            )
    if only == "test" and not found and others and not any(_holds_parts(root / name) for name in others):
        note = f"{root}: no split folder (train, val or test) is there, so its class folders are taken as test images"
        return {"test": ""}, (note,)
    if missing := _missing(set(found), only):
        there = f", only {_listed(others)}" if others and not found else ""
        raise UserError(f"{root} has no {missing}{there}", hint=layout(only))
    notes = []
    if others:
        what = "a folder that is no split" if len(others) == 1 else f"{len(others)} folders that are no split"
        notes.append(f"{root}: passed over {what} (train, val or test): {_listed(others)}")
    if loose:
        what = counted(len(loose), "image file")
        notes.append(f"{root}: {what} passed over beside the splits ({first_names(loose)})")
    parts: dict[str, str] = {part: found[part][0] for part in ("train", "val", "test") if part in found}
    if "test" not in parts and only in (None, "test"):
        parts["test"] = parts.pop("val")
    return parts, tuple(notes)


def _holds_parts(folder: Path) -> bool:
    """Whether a folder holds folders of parts: then it is a dataset of its own, and no class."""
    return any(_is_dir(entry) and part_of(entry.name) for entry in _entries(folder))


def _missing(found: Set[str], only: str | None) -> str:
    """What folders should be there, and are not; empty if nothing is missing."""
    if only is None and "train" not in found:
        return "train/"
    if only in (None, "test"):
        return "" if found & {"val", "test"} else "test/ or val/"
    ways = {"train"} if only == "train" else {"train", "val"}  # validation images can be held out of the training part
    return "" if found & ways else " or ".join(f"{name}/" for name in sorted(ways))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"'{shown(name)}'" for name in names[:5]) + more


def tree_of(root: Path, folder: str, usual: Set[str] = frozenset()) -> tuple[Tree, tuple[str, ...]]:
    """The files of each class below `root/folder`, and notes on unused files without a `usual` ending.

    Raises:
        UserError: a folder cannot be read, a class has no image, or a name cannot be a class name.
    """
    on_disk: dict[str, str] = {}
    beside = []
    for entry in sorted(_entries(root / folder), key=lambda entry: entry.name):
        if not _is_dir(entry):
            if ending_of(entry.name) not in usual:
                beside.append(entry.name)
            continue
        what = f"{root / folder}: the class folder"
        check_utf8(entry.name, what)
        if shown(entry.name) != entry.name:
            raise UserError(f"{what} '{shown(entry.name)}' has control characters in its name", hint=RENAME)
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
        images[name], others[name] = images_below(root, f"{folder}/{on_disk[name]}".removeprefix("/"), usual)
        if not images[name]:
            only = f", only {by_ending(others[name])}" if others[name] else ""
            raise UserError(
                f"class folder {root / folder / name} has no image that can be read{only}",
                hint=f"fill it or take it away; images end in {' '.join(readable_endings())}",
            )
    return images, notes_on(root / folder, others, beside)


def images_below(root: Path, folder: str, usual: Set[str] = frozenset()) -> tuple[list[str], list[str]]:
    """The image files below a folder, sorted, and the other files except those with a `usual` ending."""
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
    for entry in _entries(root / folder):
        name = f"{folder}/{entry.name}"
        if _is_dir(entry):
            yield from _files_below(root, name, (*ancestors, real))
        else:
            yield name, entry


def _is_device(entry: os.DirEntry[str]) -> bool:
    """Whether it is a pipe or a socket: opening one would wait for ever. A dead link is neither."""
    return not entry.is_file(follow_symlinks=False) and os.path.exists(entry) and not os.path.isfile(entry)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, unsorted, without hidden files such as `.DS_Store`, `._copy.jpg` or `Thumbs.db`."""
    with accessible(folder), os.scandir(folder) as found:
        return [entry for entry in found if not entry.name.startswith(".") and entry.name not in _HIDDEN]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))


def classes_of(root: Path, trees: dict[str, Tree], least: int = 2, only: str | None = None) -> list[str]:
    """The classes of "train", or of the first part; UserError where there are fewer than `least`, or they differ.

    Args:
        only: as for `parts_in`.
    """
    first = "train" if "train" in trees else next(iter(trees))
    classes = list(trees[first])
    for part, tree in trees.items():
        if len(tree) < least:
            found = f"only '{next(iter(tree))}'" if tree else "none"
            needed = f"at least {least} class folders are" if least > 1 else "a class folder is"
            raise UserError(f"{root}: {needed} needed for {part}, found {found}", hint=layout(only))
        if extra := sorted(tree.keys() - set(classes)):
            raise UserError(
                f"{root}: {first} lacks class '{extra[0]}' of {part} (and {len(extra) - 1} more)",
                hint=nearest(extra[0], classes) if len(classes) <= 20 else LAYOUT,
            )
        if missing := sorted(set(classes) - tree.keys()):
            raise UserError(
                f"{root}: {part} lacks class '{missing[0]}' of {first} (and {len(missing) - 1} more)",
                hint="both must have the same class folders",
            )
    return classes
