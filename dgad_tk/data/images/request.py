"""What a loader is asked for."""

from dataclasses import dataclass

from dgad_tk.common import UserError, lookup
from dgad_tk.data.images.resize import RESIZES, SQUEEZE
from dgad_tk.data.images.size import Size, size_of, written

GREY, RGB = 1, 3
MODES = {GREY: "L", RGB: "RGB"}
"""Pillow's modes by the number of channels."""


@dataclass(frozen=True)
class Request:
    """How a folder of images is read. Datasets of one size take no notice of it.

    Attributes:
        size: (H, W).
        resize: row of RESIZES.
        channels: GREY or RGB.
        only: the one split that has to be there; None if there is to be training.
        least: class folders that have to be there: 2, or 1 where somebody else names the other classes.
    """

    size: Size
    resize: str = SQUEEZE
    channels: int = RGB
    only: str | None = None
    least: int = 2

    @property
    def salt(self) -> str:
        """What the arrays depend on besides the files. It is part of the cache's key."""
        found = f"image_size {written(self.size)}"
        found += f" {self.resize}" if self.resize != SQUEEZE else ""
        return found + (" grey" if self.channels == GREY else "")

    def stretch(self, height: int, width: int) -> float:
        """How much wider or higher things become in a picture of this size: at least 1, and 1 for crop and pad."""
        if self.resize != SQUEEZE or not (height and width):
            return 1.0
        ratio = (width / height) / (self.size[1] / self.size[0])
        return max(ratio, 1 / ratio)


def request_of(size: object, resize: str | None, channels: int | None, only: str | None, least: int = 2) -> Request:
    """A request from what people wrote; None takes the default.

    Raises:
        UserError: one of them is no value of its kind.
    """
    resize = SQUEEZE if resize is None else checked_resize(resize)
    channels = RGB if channels is None else checked_channels(channels)
    return Request(size_of(size), resize, channels, only, least)


def checked_resize(name: str) -> str:
    """`name`; UserError where it is no row of RESIZES."""
    lookup(RESIZES, name, "way to resize")
    return name


def checked_channels(channels: int) -> int:
    """`channels`; UserError where no picture is read so."""
    if channels not in MODES:
        raise UserError(
            f"channels must be 1 or 3, got {channels}", hint="an image folder is read as grey (1) or as RGB (3)"
        )
    return channels
