"""What `torchrun` needs: who we are among the processes, sums over all of them, networks that they train together.

Each process takes its part of every batch and computes the loss of the whole one: sums over samples go through
`across`, whose gradient does too. Averaging the parameters' gradients over the processes, which is what
DistributedDataParallel does, then gives exactly the gradient of that loss.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dgad_tk.common import UserError, reason_of

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: one of them may be decoding a dataset."""


@dataclass(frozen=True)
class World:
    """The processes of this run, as `torchrun` made them; one of one without it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0


def world() -> World:
    """The processes that have met; this one alone where none has."""
    return launched() if dist.is_initialized() else World()


def launched() -> World:
    """The processes that torchrun's environment speaks of.

    Raises:
        UserError: the environment is not one that torchrun makes.
    """
    try:
        found = World(
            *(int(os.environ.get(*pair)) for pair in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
        )
    except ValueError as error:
        raise UserError(
            f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers: {error}", hint="start with torchrun"
        ) from None
    if not 0 <= found.rank < found.size:
        raise UserError(f"RANK is {found.rank} of WORLD_SIZE {found.size}", hint="start with torchrun")
    return found


@contextmanager
def joined(device: torch.device, *, patience: timedelta = PATIENCE) -> Iterator[World]:
    """Meet the other processes, by NCCL on GPUs and Gloo elsewhere; nothing to do for one alone.

    Args:
        patience: how long a process waits for the others before it gives up.

    Raises:
        UserError: there is nobody to meet.
    """
    here = launched()
    if here.size == 1 or dist.is_initialized():
        yield here
        return
    if device.type == "cuda":
        torch.cuda.set_device(here.local_rank)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    except (RuntimeError, ValueError) as error:  # no address in the environment, or nobody there
        raise UserError(
            f"RANK and WORLD_SIZE speak of {here.size} processes, which cannot meet: {reason_of(error)}",
            hint="start with torchrun, or unset RANK and WORLD_SIZE",
        ) from None
    try:
        yield here
    finally:
        dist.destroy_process_group()


def across(value: Tensor) -> Tensor:
    """Sum of `value` over the processes, differentiable."""
    summed: Tensor = _Across.apply(value) if dist.is_initialized() else value
    return summed


class _Across(torch.autograd.Function):
    """Every process holds the sum, so the gradient of each summand is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def leaders(value: T) -> T:
    """The leader's `value`, in every process."""
    if not dist.is_initialized():
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def by_leader(work: Callable[[], T]) -> T:
    """What `work` returns, in every process; the leader alone does it.

    Raises:
        UserError, OSError: the leader's, in every process: the others would wait for it in vain.
    """
    done: tuple[T | None, UserError | OSError | None] = None, None
    if world().leads:
        try:
            done = work(), None
        except (UserError, OSError) as error:
            done = None, error
    found, failed = leaders(done)
    if failed is not None:
        raise failed
    return cast(T, found)


def from_all(value: T) -> list[T]:
    """Every process's `value`, in every process, in the order of their ranks."""
    if not dist.is_initialized():
        return [value]
    held: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(held, value)
    return cast(list[T], held)


def largest(value: int, device: torch.device) -> int:
    """The largest `value` of any process: what one alone decided would leave the others waiting for it."""
    if not dist.is_initialized():
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def layout(device: torch.device) -> torch.memory_format:
    """How to lay out images and weights of a network in training mode."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


class Trained(nn.Module):
    """A network as training calls it: laid out as its device likes it, logits in float32 at least.

    Channels-last on a GPU only: on a CPU it gains little in training mode, and torch's BatchNorm there sums its
    statistics with 40 times the rounding, enough to flip a ReLU in every step.

    Args:
        net: the network; its parameters are trained where they are.
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
    """The network inside what `shared` made: without weight gradients, as in an attack, there is nothing to average."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return model.net if isinstance(model, Trained) else model


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Set BatchNorm's running statistics to their mean over the processes, so that all hold the same network.

    What they agree on keeps its bits: a run that was interrupted after this is resumed with doing it again.
    """
    if not dist.is_initialized():
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            origin = buffer.clone()
            dist.broadcast(origin, src=0)
            buffer.copy_(origin + across(buffer - origin) / dist.get_world_size())


def synchronised(model: nn.Module) -> nn.Module:
    """`model` with the batch statistics of its BatchNorms over all processes, which are on GPUs."""
    if not dist.is_initialized():
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return,no-untyped-call]
