"""Which files of a folder are images that can be read, and the account of those that are left out."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath

from dgad_tk.names import shown

_ALWAYS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = {"JPEG", "MPO", "JPEG2000", "PNG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "TGA", "PCX", "QOI"}
"""Pillow's names of formats that hold a picture of 8 bits a channel and nothing else. It also registers documents
(PDF, EPS), films (MPEG) and tables (HDF5)."""
_OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
"""Formats that Pillow registers whether or not it was built with their decoder, and the name of that."""
_OTHER_IMAGES = {".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".ico", ".psd", ".eps", ".exr", ".hdr", ".pfm"}
_OTHER_IMAGES |= {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".raw"}  # of cameras

_LISTED = 6
_NAMED = 3


@cache
def readable_endings() -> tuple[str, ...]:
    """Endings, in small letters, of the images that the installed Pillow opens, the usual ones first."""
    from PIL import Image, features  # not needed to know the names of the datasets

    Image.init()
    without = {name for name, codec in _OPTIONAL.items() if not features.check(codec)}
    known = {
        ending for ending, name in Image.registered_extensions().items() if name in _FORMATS - without
    } - _OTHER_IMAGES
    usual = [ending for ending in _ALWAYS if ending in known]
    return (*usual, *sorted(known.difference(usual)))


def is_image(name: str) -> bool:
    """Whether a file's ending is one of an image, be it one that is read or not."""
    ending = ending_of(name)
    return ending in readable_endings() or ending in _OTHER_IMAGES


def ending_of(name: str) -> str:
    """`.jpg` of `a/b.JPG`; empty where there is none."""
    return PurePosixPath(name).suffix.lower()


@dataclass
class LeftOut:
    """What is in the folder of one part, and is not used.

    Attributes:
        inside: by class, the endings of files that are not read, and how many of each there are.
        beside: names of files that lie beside the class folders.
        usual: endings of files that belong there, and are no loss.
    """

    usual: frozenset[str] = frozenset()
    inside: dict[str, Counter[str]] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)

    def add(self, group: str, name: str) -> None:
        """Count a file of a class that is not read."""
        if ending_of(name) not in self.usual:
            self.inside.setdefault(group, Counter())[ending_of(name)] += 1

    def add_beside(self, name: str) -> None:
        """Count a file that no class folder holds."""
        if ending_of(name) not in self.usual:
            self.beside.append(name)

    def notes(self, folder: str, classes: int) -> tuple[str, ...]:
        """A sentence for each kind of thing left out; none where there is nothing.

        Args:
            folder: that of the part, as the user knows it.
            classes: how many class folders it has.
        """
        found = []
        if self.inside:
            total = sum(self.inside.values(), Counter[str]())
            where = f"in {len(self.inside)} of {classes} class folders"
            found.append(f"{folder}: {counted(total.total(), 'file')} passed over {where}: {by_ending(total)}")
        if self.beside:
            total = Counter(map(ending_of, self.beside))
            what = f"{counted(len(self.beside), 'file')} passed over, since no class folder holds"
            it = "it" if len(self.beside) == 1 else "them"
            found.append(f"{folder}: {what} {it}: {by_ending(total)} ({first_names(self.beside)})")
        return tuple(found)


def by_ending(endings: Counter[str]) -> str:
    """`10 .heic, 3 .txt`, the most frequent first."""
    # Not by Counter.most_common, which leaves ties in the order of the file system.
    ranked = sorted(endings.items(), key=lambda item: (-item[1], item[0] or "~"))
    listed = [f"{count:,} {shown(ending) or 'without an ending'}" for ending, count in ranked[:_LISTED]]
    rest = sum(count for _, count in ranked[_LISTED:])
    return ", ".join(listed) + (f", {rest:,} others" if rest else "")


def first_names(names: Iterable[str]) -> str:
    """`a.jpg, b.jpg, c.jpg, ...`, the first in alphabetical order."""
    known = sorted(names)
    return ", ".join(map(shown, known[:_NAMED])) + (", ..." if len(known) > _NAMED else "")


def counted(count: int, what: str) -> str:
    """`1 file` or `1,234 files`."""
    return f"{count:,} {what}" + ("s" if count != 1 else "")
