"""How training calls a network: its layout, and what several processes that train it together add."""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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


def shared(model: nn.Module) -> nn.Module:
    """`model` for the outer step, with its gradients averaged over the processes after each backward pass.

    Its running statistics stay each process's own: see `average_statistics`.
    """
    trained = Trained(model)
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
    return model.net if isinstance(model, Trained) else model


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
