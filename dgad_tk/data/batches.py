"""Cuts an epoch into batches, and brings a batch onto the device."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgad_tk.data import Split


def batch_positions(order: Tensor, batch_size: int, smallest: int) -> Iterator[NDArray[np.int64]]:
    """An epoch's order cut into batches. A last batch of fewer than `smallest` images joins the one before it.

    The reason is BatchNorm: a single image whose feature map is one pixel has no variance.
    """
    positions = order.numpy()
    ends = [*range(batch_size, len(positions), batch_size), len(positions)]
    if len(ends) > 1 and ends[-1] - ends[-2] < smallest:
        del ends[-2]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield positions[start:end]


def on_device(split: Split, positions: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 images `(N, C, H, W)`, labels and dataset indices of `positions`, on `device`."""
    images = torch.from_numpy(split.take(positions)).to(device, non_blocking=True)
    labels = torch.from_numpy(split.labels[positions]).to(device, non_blocking=True)
    return images, labels, torch.from_numpy(split.index[positions]).to(device, non_blocking=True)
