"""Which files are readable images, by their endings, and what to say about the others."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from dgad_tk.strangers.names import shown

_FORMATS = {"JPEG", "MPO", "JPEG2000", "PNG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "TGA", "PCX", "QOI"}
"""Pillow's names of formats for pictures of 8 bits per channel. Pillow also registers documents (PDF, EPS), films
(MPEG) and tables (HDF5)."""
_OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
"""Formats that Pillow registers even when it was built without their decoder, and the decoder's name."""
_OTHER_IMAGES = {".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".ico", ".psd", ".eps", ".exr", ".hdr", ".pfm"}
_OTHER_IMAGES |= {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".raw"}  # of cameras

_LISTED = 6
_NAMED = 3


@cache
def readable_endings() -> tuple[str, ...]:
    """Endings, in lower case, of the images that the installed Pillow opens."""
    from PIL import Image, features  # not needed to know the names of the datasets

    Image.init()
    formats = _FORMATS - {name for name, codec in _OPTIONAL.items() if not features.check(codec)}
    known = {ending for ending, name in Image.registered_extensions().items() if name in formats}
    return tuple(sorted(known - _OTHER_IMAGES))


def is_image(name: str) -> bool:
    """Whether a file's ending is that of an image, even of one that cannot be read here."""
    return ending_of(name) in {*readable_endings(), *_OTHER_IMAGES}


def ending_of(name: str) -> str:
    """`.jpg` of `a/b.JPG`; empty where there is none."""
    return PurePosixPath(name).suffix.lower()


def notes_on(folder: Path, inside: Mapping[str, Sequence[str]], beside: Sequence[str] = ()) -> tuple[str, ...]:
    """Sentences about the files of a part that are not used.

    Args:
        folder: of the part.
        inside: per class, the files in its folder that are not read.
        beside: the files in no class folder.
    """
    notes = []
    if passed := [name for names in inside.values() for name in names]:
        where = f"in {sum(map(bool, inside.values()))} of {len(inside)} class folders"
        notes.append(f"{folder}: {counted(len(passed), 'file')} passed over {where}: {by_ending(passed)}")
    if beside:
        them = "it" if len(beside) == 1 else "them"
        what = f"{counted(len(beside), 'file')} passed over, since no class folder holds {them}"
        notes.append(f"{folder}: {what}: {by_ending(beside)} ({first_names(beside)})")
    return tuple(notes)


def by_ending(names: Iterable[str]) -> str:
    """`10 .heic, 3 .txt`, the most frequent first."""
    # Counter.most_common would leave ties in the order of the file system.
    ranked = sorted(Counter(map(ending_of, names)).items(), key=lambda item: (-item[1], item[0] or "~"))
    listed = [f"{count:,} {shown(ending) or 'without an ending'}" for ending, count in ranked[:_LISTED]]
    rest = sum(count for _, count in ranked[_LISTED:])
    return ", ".join(listed) + (f", {rest:,} others" if rest else "")


def first_names(names: Iterable[str]) -> str:
    """`a.jpg, b.jpg, c.jpg, ...`, in alphabetical order."""
    known = sorted(names)
    return ", ".join(map(shown, known[:_NAMED])) + (", ..." if len(known) > _NAMED else "")


def counted(count: int, what: str) -> str:
    """`1 file` or `1,234 files`."""
    return f"{count:,} {what}" + ("s" if count != 1 else "")
