"""How training calls a network: its layout, in parts of a batch, and what several processes that train it add."""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from dgad_tk.distributed import across


def layout(device: torch.device) -> torch.memory_format:
    """Memory format of images and weights in training mode."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


class Trained(nn.Module):
    """A network as training calls it: in the layout of its device, with logits in float32 or float64.

    The layout is channels-last on a GPU only. On a CPU that gains little in training mode, and torch's BatchNorm then
    sums its statistics with 40 times the rounding, enough to flip a ReLU in every step.

    Args:
        net: the network; its parameters are shared, not copied.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.contiguous(memory_format=layout(x.device)))
        return logits.float() if logits.dtype == torch.bfloat16 else logits


def parts_of(n: int, most: int) -> list[slice]:
    """The rows of a batch of `n` images in parts of `most` at most, as equal as can be; in one part if `most` is 0.

    No part holds a single image if the batch holds more, since BatchNorm has no variance of one: a part of three may
    be what a limit of two allows.
    """
    count = max(1, min(-(-n // most), n // 2)) if most else 1
    return [slice(n * at // count, n * (at + 1) // count) for at in range(count)]


class InParts(nn.Module):
    """A network whose answers to a batch are computed part by part, and so are its gradients.

    The activations of one part at a time are held: the backward pass computes those of each part anew. Whoever calls it
    sees whole batches, so that a loss which ties the images of a batch together is the batch's own.

    Args:
        net: the network; in train mode, its BatchNorms normalise each part by its own statistics.
        most: number of images in a part.
    """

    def __init__(self, net: nn.Module, most: int) -> None:
        super().__init__()
        self.net, self.most = net, most

    def forward(self, x: Tensor) -> Tensor:
        parts = parts_of(len(x), self.most)
        if len(parts) == 1:
            logits: Tensor = self.net(x)
            return logits
        return torch.cat([self._answer(x[rows]) for rows in parts])

    def _answer(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.net(x)  # type: ignore[no-any-return]
        # Randomness such as Dropout's is the same the second time; running statistics have moved already.
        return checkpoint(self.net, x, use_reentrant=False, context_fn=self._contexts)  # type: ignore[no-any-return]

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), kept_statistics(self.net)


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Put all buffers, such as BatchNorm's running statistics, back to what they were."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def shared(model: nn.Module, most: int = 0) -> nn.Module:
    """`model` for the outer step, with its gradients averaged over the processes after each backward pass.

    Its running statistics stay each process's own: see `average_statistics`.

    Args:
        most: number of images in the parts that it computes a batch in; 0 for whole batches.
    """
    trained: nn.Module = InParts(Trained(model), most) if most else Trained(model)
    if not dist.is_initialized():
        return trained
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # the old one warns
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(trained, **options)


def bare(model: nn.Module) -> nn.Module:
    """The network inside what `shared` made, for an attack: it computes no weight gradients that need averaging."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    while isinstance(model, InParts | Trained):
        model = model.net
    return model


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Set BatchNorm's running statistics to their mean over the processes, so that all hold the same network.

    Values that are equal in all processes keep every bit, since a run that is interrupted after this does it again.
    """
    if not dist.is_initialized():
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            origin = buffer.clone()
            dist.broadcast(origin, src=0)
            buffer.copy_(origin + across(buffer - origin) / dist.get_world_size())


def synchronised(model: nn.Module) -> nn.Module:
    """`model` with BatchNorms that compute their statistics over all processes, which are on GPUs."""
    if not dist.is_initialized():
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return,no-untyped-call]
