"""What moves pixels and changes none: shifts of a zero-padded image, and mirroring."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dgad_tk.data.augment.numbers import Uniforms, to_float
from dgad_tk.data.spec import Augmentation
from dgad_tk.draws import Draws


def augment(images: Tensor, *, augmentation: Augmentation, draws: Draws, index: Tensor, epoch: int) -> Tensor:
    """Random crop of each zero-padded image, then a random flip; float32 in [0, 1]. What a dataset does by default.

    Args:
        images: uint8 `(N, C, H, W)` on any device.
        draws: of the run's seed.
        index: dataset indices, int64 `(N,)`; they choose the draws.
        epoch: from 0.
    """
    n, padding = len(images), augmentation.padding
    assert index.shape == (n,), f"{n} images, indices {tuple(index.shape)}"
    index = index.to(images.device)
    # Corner of the crop in the padded image: 0 moves the content down or right, 2 * padding up or left.
    corner = draws.integers("augment-crop", (2,), low=0, high=2 * padding + 1, index=index, epoch=epoch)
    top, left = corner.unbind(1)
    side = None
    if augmentation.flip:
        side = draws.integers("augment-flip", (1,), low=0, high=2, index=index, epoch=epoch)[:, 0]
    return to_float(_taken(images, (padding, padding), top, left, side))


def crop(images: Tensor, amount: float, uniforms: Uniforms) -> Tensor:
    """Each image, zero-padded by `amount` of its sides, cut to its own size at a random place."""
    vertical, horizontal = (round(amount * side) for side in images.shape[2:])
    u = uniforms("corner", 2)
    top, left = ((u[:, at] * (2 * padding + 1)).long() for at, padding in enumerate((vertical, horizontal)))
    return _taken(images, (vertical, horizontal), top, left, None)


def flip(images: Tensor, amount: float, uniforms: Uniforms) -> Tensor:
    """Mirror each image left to right with probability `amount`."""
    mirrored = uniforms("side", 1)[:, 0] < amount
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def _taken(images: Tensor, padding: tuple[int, int], top: Tensor, left: Tensor, mirrored: Tensor | None) -> Tensor:
    """The crops of the zero-padded images that begin at `top` and `left`, `(N,)`, mirrored where that is 1."""
    n, _, height, width = images.shape
    vertical, horizontal = padding
    padded = F.pad(images, (horizontal, horizontal, vertical, vertical))[:, None]
    side = torch.zeros_like(top)
    if mirrored is not None:
        # A mirrored crop is a crop of the mirrored image, as far from its right edge.
        padded, side = torch.cat([padded, padded.flip(-1)], dim=1), mirrored
        left = torch.where(side == 1, 2 * horizontal - left, left)
    # All possible crops as a view, so that the chosen ones are copied by whole images, not pixel by pixel.
    crops = padded.unfold(3, height, 1).unfold(4, width, 1)
    return crops[torch.arange(n, device=images.device), side, :, top, left]
