"""Which images come in which batch, and how they get onto the device; the learning rate of each step."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgad_tk.config import TrainConfig, epoch_of
from dgad_tk.data import Split
from dgad_tk.draws import Draws


def batch_positions(order: Tensor, batch_size: int, smallest: int = 2) -> Iterator[NDArray[np.int64]]:
    """Cut an epoch's order into batches. The last may be short, but fewer than `smallest` images join the batch before:
    a single one has no variance for BatchNorm where the feature map has shrunk to one pixel."""
    positions = order.numpy()
    ends = [*range(batch_size, len(positions), batch_size), len(positions)]
    if len(ends) > 1 and ends[-1] - ends[-2] < smallest:
        del ends[-2]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield positions[start:end]


def fetch(split: Split, positions: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 images `(N, C, H, W)`, labels and dataset indices of `positions`, on `device`."""
    images = torch.from_numpy(split.take(positions)).to(device, non_blocking=True)
    labels = torch.from_numpy(split.labels[positions]).to(device, non_blocking=True)
    return images, labels, torch.from_numpy(split.index[positions]).to(device, non_blocking=True)


def draw_noise(
    draws: Draws, purpose: str, shape: tuple[int, ...], index: Tensor, kind: str, *, epoch: int = 0, step: int = 0
) -> Tensor:
    """Start noise of an attack, `(len(index), *shape)`, standard normal or uniform on [-1, 1].

    A function of (seed, purpose, epoch, dataset index, step).
    """
    if kind == "normal":
        return draws.normal(purpose, tuple(shape), index=index, epoch=epoch, step=step)
    return 2 * draws.uniform(purpose, tuple(shape), index=index, epoch=epoch, step=step) - 1


def learning_rate(config: TrainConfig, at: float) -> float:
    """The rate at a moment of the run, in epochs from its beginning."""
    share = at / config.epochs
    if config.schedule == "cosine":
        rest = max(config.epochs - config.warmup_epochs, 1e-9)
        rate = config.lr * 0.5 * (1 + math.cos(math.pi * max(at - config.warmup_epochs, 0) / rest))
    elif config.schedule == "cyclic":
        rate = config.lr * min(share / 0.4, (1 - share) / 0.6)
    elif config.schedule == "piecewise":
        passed = sum(math.floor(at) >= epoch_of(milestone, config.epochs) for milestone in config.milestones)
        rate = config.lr * 0.1**passed
    else:
        rate = config.lr
    return rate * min(at / config.warmup_epochs, 1) if config.warmup_epochs else rate
