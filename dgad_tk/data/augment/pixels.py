"""Bytes to numbers."""

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8 `(N, C, H, W)` to float32 in [0, 1]: v / 255, correctly rounded on every device."""
    # CUDA divides by a tensor on the device; by a Python number it would multiply by the rounded reciprocal.
    return images.to(torch.float32, copy=True).div_(torch.full((), 255.0, device=images.device))
