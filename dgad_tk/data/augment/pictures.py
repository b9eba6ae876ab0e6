"""What computes new pixels, by torchvision's functions, image by image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dgad_tk.data.augment.numbers import Uniforms

ATTEMPTS = 10
RATIO = 4 / 3
"""Largest change of the aspect ratio of a part, in either direction."""


def random_resized_crop(images: Tensor, amount: float, uniforms: Uniforms) -> Tensor:
    """A random part of each image, of `amount` to all of its area, brought back to the image's size.

    As torchvision's RandomResizedCrop, but for images that are not square: the aspect ratio of a part is 3/4 to 4/3
    times that of the image, so that nothing is stretched by more. An image stays as it is where ten draws give no part
    that fits into it.
    """
    from torchvision.transforms.v2.functional import resized_crop

    height, width = images.shape[2:]
    drawn = uniforms("part", 4 * ATTEMPTS).reshape(-1, ATTEMPTS, 4).tolist()  # one wait for the device
    found = []
    for image, attempts in zip(images, drawn, strict=True):
        part = next(filter(None, (_part(height, width, amount, attempt) for attempt in attempts)), None)
        found.append(image if part is None else resized_crop(image, *part, size=[height, width], antialias=True))
    return torch.stack(found).clamp_(0, 1)


def _part(height: int, width: int, least: float, drawn: Sequence[float]) -> list[int] | None:
    """Top, left, height and width of the part for four numbers on [0, 1); None if it does not fit into the image."""
    area, ratio, down, right = drawn
    share = least + area * (1 - least)
    stretch = math.exp((2 * ratio - 1) * math.log(RATIO))
    h, w = round(height * math.sqrt(share / stretch)), round(width * math.sqrt(share * stretch))
    if not (0 < h <= height and 0 < w <= width):
        return None
    return [int(down * (height - h + 1)), int(right * (width - w + 1)), h, w]


def colour_jitter(images: Tensor, amount: float, uniforms: Uniforms) -> Tensor:
    """Brightness, contrast and saturation times 1 - `amount` to 1 + `amount`, hue turned by up to a quarter of it.

    In an order drawn for each image, as torchvision's ColorJitter. Grey images have neither saturation nor hue.
    """
    from torchvision.transforms.v2 import functional as F

    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    u = uniforms("colour", 8)
    orders = torch.argsort(u[:, 4:], dim=1, stable=True).tolist()
    found = []
    for image, factors, order in zip(images, (2 * u[:, :4] - 1).tolist(), orders, strict=True):
        for which in order:
            factor = factors[which] * amount
            image = adjust[which](image, factor / 4 if which == 3 else 1 + factor)
        found.append(image)
    return torch.stack(found).clamp_(0, 1)
