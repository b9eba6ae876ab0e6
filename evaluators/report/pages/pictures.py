"""Images as data URIs: the image, the change amplified, the result."""

import base64
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SMALL = 64
"""Images up to this height and width are stored exactly and shown pixel by pixel; larger ones are JPEG."""
LARGEST = 224
"""Height or width of what a page holds. Larger images are scaled down."""
SHARP = 128
"""Height or width that a small image is drawn in, each pixel as a square."""
QUALITY = 88

Pixels = NDArray[np.float32]
"""One image, `(C, H, W)` in [0, 1]."""


@dataclass(frozen=True)
class Picture:
    """An image on a page.

    Attributes:
        uri: its data.
        alt: text alternative.
        caption: a word below it.
        tiny: so small that its pixels are shown as squares.
    """

    uri: str
    alt: str
    caption: str
    width: int
    height: int
    tiny: bool


def picture(image: Pixels, *, alt: str, caption: str = "") -> Picture:
    """An image as it is. Of images with neither one nor three channels, the mean over the channels is shown."""
    shown = _channels(image)
    levels = np.clip(np.rint(np.nan_to_num(shown) * 255), 0, 255).astype(np.uint8)
    drawn = Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))
    width, height = drawn.size
    tiny = max(width, height) <= SMALL
    if tiny:  # a browser that prints does not always keep the squares
        times = max(1, SHARP // max(width, height))
        drawn = drawn.resize((width * times, height * times), Image.Resampling.NEAREST)
    if max(width, height) > LARGEST:
        drawn.thumbnail((LARGEST, LARGEST))
    kind, file = "png" if tiny else "jpeg", BytesIO()
    drawn.save(file, format=kind, **({} if tiny else {"quality": QUALITY}))
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{data}", alt, caption, *drawn.size, tiny)


def change(before: Pixels, after: Pixels, full: float, *, alt: str, caption: str = "") -> Picture:
    """What was added, amplified so that `full` is full colour. Of images with neither one nor three channels, the
    channel that changed most is shown.

    Of one channel, lighter is orange and darker is blue, which grey levels would not tell from the image itself.
    """
    difference = after - before
    if difference.shape[0] not in (1, 3):  # a mean would hide changes of opposite signs
        largest = np.abs(difference).argmax(axis=0, keepdims=True)
        difference = np.take_along_axis(difference, largest, axis=0)
    added = np.clip(difference / (full or 1.0), -1, 1)
    if len(added) == 1:
        lighter, darker = np.maximum(added, 0), np.maximum(-added, 0)
        rgb = [0.93 - 0.62 * darker - 0.05 * lighter, 0.93 - 0.5 * lighter - 0.42 * darker]
        return picture(
            np.concatenate([*rgb, 0.93 - 0.85 * lighter - 0.22 * darker]).astype(np.float32), alt=alt, caption=caption
        )
    return picture((0.5 + 0.5 * added).astype(np.float32), alt=alt, caption=caption)


def _channels(image: NDArray[np.floating]) -> NDArray[np.floating]:
    return image if image.shape[0] in (1, 3) else image.mean(axis=0, keepdims=True)
