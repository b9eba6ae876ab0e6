"""Augmentation of a whole batch on the device. The draws for an image do not depend on the rest of the batch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dgad_tk.data.spec import Augmentation
from dgad_tk.draws import Draws


def to_float(images: Tensor) -> Tensor:
    """uint8 `(N, C, H, W)` to float32 in [0, 1]: v / 255, correctly rounded on every device."""
    # CUDA divides by a tensor on the device; by a Python number it would multiply by the rounded reciprocal.
    return images.to(torch.float32, copy=True).div_(torch.full((), 255.0, device=images.device))


def augment(images: Tensor, *, augmentation: Augmentation, draws: Draws, index: Tensor, epoch: int) -> Tensor:
    """Random crop of each zero-padded image, then a random flip; float32 in [0, 1].

    Args:
        images: uint8 `(N, C, H, W)` on any device.
        draws: of the run's seed.
        index: dataset indices, int64 `(N,)`; they choose the draws.
        epoch: from 0.
    """
    n, _, height, width = images.shape
    assert index.shape == (n,), f"{n} images, indices {tuple(index.shape)}"
    device, padding = images.device, augmentation.padding
    index = index.to(device)
    # Corner of the crop in the padded image: 0 moves the content down or right, 2 * padding up or left.
    corner = draws.integers("augment-crop", (2,), low=0, high=2 * padding + 1, index=index, epoch=epoch)
    top, left = corner.unbind(1)
    padded = F.pad(images, (padding,) * 4)[:, None]
    side = torch.zeros_like(index)
    if augmentation.flip:
        # A mirrored crop is a crop of the mirrored image, as far from its right edge.
        side = draws.integers("augment-flip", (1,), low=0, high=2, index=index, epoch=epoch)[:, 0]
        padded = torch.cat([padded, padded.flip(-1)], dim=1)
        left = torch.where(side == 1, 2 * padding - left, left)
    # All possible crops as a view, so that the chosen ones are copied by whole images, not pixel by pixel.
    crops = padded.unfold(3, height, 1).unfold(4, width, 1)
    return to_float(crops[torch.arange(n, device=device), side, :, top, left])
