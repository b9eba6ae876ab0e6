"""RESIZES: how a picture of any shape becomes one of the shape that a network takes. Pillow's bilinear filter, which
averages over all pixels where it shrinks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dgad_tk.data.images.size import Size

if TYPE_CHECKING:
    from PIL.Image import Image

BILINEAR: Any = 2
"""Pillow's number of the filter. Pillow is not imported to know the names of the ways."""


def squeeze(image: "Image", size: Size) -> "Image":
    """The whole picture in the new shape: its content is stretched where the aspect ratios differ."""
    height, width = size
    return image.resize((width, height), BILINEAR)


def crop(image: "Image", size: Size) -> "Image":
    """The middle of the picture: scaled until it just covers the new shape; what juts out is cut off evenly.

    What torchvision does by `Resize` of the shorter side and `CenterCrop`, in one resampling, so that a long thin
    picture takes no memory for what is cut off.
    """
    from PIL import ImageOps

    return ImageOps.fit(image, size[::-1], method=BILINEAR)


def pad(image: "Image", size: Size) -> "Image":
    """The whole picture, scaled until it just fits into the new shape, in the middle, with black borders.

    The sides are rounded to whole pixels, and are at least one.
    """
    from PIL import Image

    height, width = size
    scale = min(height / image.height, width / image.width)
    inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), BILINEAR)
    whole = Image.new(image.mode, (width, height))
    whole.paste(inner, (round((width - inner.width) / 2), round((height - inner.height) / 2)))
    return whole


@dataclass(frozen=True)
class Resize:
    """A row of RESIZES.

    Attributes:
        bring: a picture and (H, W) to the picture of that size.
        says: what was done, in a few words.
    """

    bring: "Callable[[Image, Size], Image]"
    says: str


RESIZES: dict[str, Resize] = {
    "squeeze": Resize(squeeze, "squeezed: resized without regard to the shape of the picture"),
    "crop": Resize(crop, "the middle of each picture: scaled, and cut where it juts out (crop)"),
    "pad": Resize(pad, "the whole of each picture: scaled to fit, with black borders (pad)"),
}
"""The first is the default."""

SQUEEZE = "squeeze"
