"""Bytes to numbers, and the random numbers of one augmentation of one batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dgad_tk.draws import Draws


def to_float(images: Tensor) -> Tensor:
    """uint8 `(N, C, H, W)` to float32 in [0, 1]: v / 255, correctly rounded on every device."""
    # CUDA divides by a tensor on the device; by a Python number it would multiply by the rounded reciprocal.
    return images.to(torch.float32, copy=True).div_(torch.full((), 255.0, device=images.device))


@dataclass(frozen=True)
class Uniforms:
    """Uniform on [0, 1), of an image, an epoch and a seed: no other image of the batch changes them.

    Attributes:
        draws: of the run's seed.
        row: of AUGMENTS; each has its own numbers.
        index: dataset indices, int64 `(N,)`, on the images' device.
        epoch: from 0.
    """

    draws: Draws
    row: str
    index: Tensor
    epoch: int

    def __call__(self, purpose: str, size: int) -> Tensor:
        """`size` numbers for each image, float32 `(N, size)`."""
        return self.draws.uniform(f"augment-{self.row}-{purpose}", (size,), index=self.index, epoch=self.epoch)
