"""The processes that `torchrun` starts: which one this is, on which device, and sums over all of them.

Each process takes its part of every batch and computes the loss of the whole batch: `across` sums over the processes,
forward and backward. DistributedDataParallel averages the parameters' gradients over the processes, which then gives
exactly the gradient of that loss.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dgad_tk.common import UserError, reason_of

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others. One of them may be decoding a dataset."""


@dataclass(frozen=True)
class World:
    """This process among those of the run; without `torchrun` it is the only one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0


def world() -> World:
    """The place among the processes that have joined; that of a single process if none have."""
    return launched() if dist.is_initialized() else World()


def launched() -> World:
    """The place among the processes in torchrun's environment variables.

    Raises:
        UserError: torchrun does not set such values.
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
    """Join the other processes, by NCCL on GPUs and Gloo elsewhere; a single process has nothing to do.

    Args:
        patience: how long a process waits for the others before it gives up.

    Raises:
        UserError: the others cannot be reached.
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
    """Every process uses the sum, so the gradient of each summand is the sum of the processes' gradients."""

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


@torch.no_grad()
def least(value: Tensor) -> Tensor:
    """The smallest of the processes' values, element by element, without a graph."""
    if not dist.is_initialized():
        return value
    found = value.clone()
    dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return found


def leaders(value: T) -> T:
    """The leader's `value`, in every process."""
    if not dist.is_initialized():
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def by_leader(work: Callable[[], T]) -> T:
    """Let the leader alone do `work`; every process gets the result.

    Raises:
        UserError, OSError: those of the leader, in every process, since the others would wait for it in vain.
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
    """The largest `value` of all processes, so that they decide alike."""
    if not dist.is_initialized():
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def pick_device(name: str) -> torch.device:
    """The device behind `auto`, `cpu` or `cuda`. `auto` is the GPU if there is one; each process takes its own.

    Raises:
        UserError: cuda was asked for and is not there, or there are more processes than GPUs.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "device is cuda: this torch sees no GPU", hint="--device auto takes the CPU where there is none"
        )
    if not available or name == "cpu":
        return torch.device("cpu")
    here = launched()
    if here.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {here.local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}",
            hint="torchrun --nproc-per-node takes as many as there are GPUs",
        )
    return torch.device("cuda", here.local_rank)
