"""Cuts an epoch into batches, and brings a batch onto the device."""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

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
    """uint8 images `(N, C, H, W)`, labels and dataset indices of `positions`, on `device`.

    A card is never waited for. It keeps the whole split where that is small beside its free memory.
    """
    if device.type == "cuda" and (held := _held(split, device)) is not None:
        return held.take(_sent(positions, device))
    images, labels, index = split.take(positions), split.labels[positions], split.index[positions]
    return _sent(images, device), _sent(labels, device), _sent(index, device)


class Held:
    """All images, labels and dataset indices of a split in a device's memory, in the split's order."""

    def __init__(self, split: Split, device: torch.device) -> None:
        every = split.take(slice(None)), split.labels, split.index
        self.values = [torch.from_numpy(np.ascontiguousarray(values)).to(device) for values in every]

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those at `positions`, int64 `(N,)` on the device."""
        images, labels, index = (values.index_select(0, positions) for values in self.values)
        return images, labels, index


SHARE = 1 / 4
"""Of a card's free memory: a split that takes more stays where it is."""

_splits: WeakKeyDictionary[Split, Held | None] = WeakKeyDictionary()


def _held(split: Split, device: torch.device) -> Held | None:
    """The split in the card's memory, brought there at the first call; None if it is too large."""
    if split not in _splits:
        size = len(split) * int(np.prod(split.base.shape[1:]))
        _splits[split] = Held(split, device) if size <= SHARE * torch.cuda.mem_get_info(device)[0] else None
    return _splits[split]


def _sent(values: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device. From page-locked memory a card fetches it when it gets there, and nobody waits."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
