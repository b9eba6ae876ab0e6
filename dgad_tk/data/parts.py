"""Which folder of a dataset plays which part: `train`, `val`, `test`, and the other names that plainly mean them."""

import re
from collections.abc import Iterable
from pathlib import Path

from dgad_tk.common import UserError
from dgad_tk.data.endings import counted, first_names, is_image
from dgad_tk.names import shown

LAYOUT = "the folder must hold train/CLASS/image files, and test/CLASS/ or val/CLASS/ likewise"

_SYNONYMS = {  # as Hugging Face's datasets knows them
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_PART_OF = {word: part for part, words in _SYNONYMS.items() for word in words}
_FILLERS = {"", "set", "data", "dataset", "split", "images", "imgs", "img", "image"}


def part_of(name: str) -> str | None:
    """The part that a folder's name says it is: "val" for `Validation`, `dev_set` or `val2017`; else None."""
    words = [word for word in re.split(r"[\W_\d]+", name.lower()) if word not in _FILLERS]
    if len(words) != 1:
        return None
    return _PART_OF.get(words[0]) or _PART_OF.get(re.sub("(set|data|images)$", "", words[0]))


def parts_in(data_dir: Path, folders: Iterable[str], files: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Part to the folder that plays it, and a note on what plays none.

    With a folder of training, one of validation and one of test images, each is itself; where there are only two, the
    second is the test part.

    Args:
        folders: names of the folders in `data_dir`.
        files: names of the files in it.

    Raises:
        UserError: there is none to train or to test on, or two folders claim one part.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(folders):
        found.setdefault(part_of(name) or "", []).append(name)
    others = found.pop("", [])
    for part, claims in found.items():
        if len(claims) > 1:
            raise UserError(
                f"{data_dir}: both '{claims[0]}' and '{claims[1]}' could be the {part} images",
                hint="move one of them away, or put them into one folder",
            )
    if "train" not in found or len(found) == 1:
        missing = "train/" if "train" not in found else "test/ or val/"
        there = f", only {_listed(others)}" if others and not found else ""
        raise UserError(f"{data_dir} has no {missing}{there}", hint=LAYOUT)
    notes = []
    if others:
        what = "a folder that is no split" if len(others) == 1 else f"{len(others)} folders that are no split"
        notes.append(f"{data_dir}: passed over {what} (train, val or test): {_listed(others)}")
    if loose := [name for name in files if is_image(name)]:
        what = counted(len(loose), "image file")
        notes.append(f"{data_dir}: {what} passed over beside the splits ({first_names(loose)})")
    parts = {part: claims[0] for part, claims in found.items()}
    if "test" not in parts:
        parts["test"] = parts.pop("val")
    return {part: parts[part] for part in sorted(parts, key=list(_SYNONYMS).index)}, tuple(notes)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"'{shown(name)}'" for name in names[:5]) + more
