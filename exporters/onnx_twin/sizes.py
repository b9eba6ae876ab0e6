"""Shape arithmetic: `Shape -> Gather -> Mul -> Concat -> Reshape` without a tensor in between.

A small tensor that is computed from the shape of a running tensor is held as an array. Its entries are numbers and
`Size`s. Gathering, slicing and joining them happens at conversion. What is left in the graph is `x.size(0)` and
arithmetic on Python numbers, which neither waits for a GPU nor breaks a compiled graph. Operators that
`size_operators` does not know get such an array as a tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from exporters.onnx_twin.tracing import deferred, fixed_sizes

MOST_ENTRIES = 64
"""Shapes are short: a constant with more entries than this is no part of one."""

OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
"""They do not take part in shape arithmetic, whose fractions are float32."""


@dataclass(frozen=True, eq=False)
class Size:
    """A number that is known when the twin runs. NumPy takes it for an object like any other."""

    proxy: fx.Proxy


Entries = NDArray[np.object_]


@dataclass(frozen=True)
class Sizes:
    """An integer, float or boolean tensor of which some entries are `Size`s."""

    entries: Entries


def shape_of(x: Tensor, start: int, end: int | None) -> Sizes | Tensor:
    """The sizes of `x` from axis `start` to `end`, as ONNX counts them."""
    sizes = fixed_sizes(x)
    if isinstance(x, Tensor) or sizes is None:
        return _shape_tensor(x, start, end)
    axes = range(len(sizes))[start:end]
    return simplify(array_of([Size(x.size(axis)) if sizes[axis] is None else sizes[axis] for axis in axes]))


def as_numbers(value: Sizes | Tensor) -> Any:
    """A flat list of numbers and proxies for numbers, or a proxy for such a list."""
    if isinstance(value, Sizes):
        return [entry.proxy if isinstance(entry, Size) else entry for entry in value.entries.ravel()]
    return _numbers(value)


def as_tensor(value: Sizes, device: Callable[[], torch.device]) -> Tensor:
    """`value` as a running tensor: int64, float32 or bool."""
    return _tensor(as_numbers(value), list(value.entries.shape), device())


def as_sizes(value: Sizes | Tensor) -> Entries | None:
    """The entries of `value` if it can take part in shape arithmetic."""
    if isinstance(value, Sizes):
        return value.entries
    if isinstance(value, Tensor) and value.numel() <= MOST_ENTRIES and value.dtype not in OTHER_FLOATS:
        return np.array(value.tolist(), dtype=object).reshape(tuple(value.shape))
    return None


def simplify(entries: Any) -> Sizes | Tensor:
    """A result of shape arithmetic, as a constant if nothing in it depends on the run."""
    if not isinstance(entries, np.ndarray):  # NumPy unpacks an array without axes
        entries = array_of([entries]).reshape(())
    flat = list(entries.ravel())
    if any(isinstance(entry, Size) for entry in flat):
        return Sizes(entries)
    integers = not flat or all(isinstance(entry, int) and not isinstance(entry, bool) for entry in flat)
    return torch.tensor(flat, dtype=torch.int64 if integers else None).reshape(entries.shape)


def array_of(entries: list[Any]) -> Entries:
    """Objects in an array of one axis; NumPy looks into none of them."""
    array = np.empty(len(entries), dtype=object)
    for index, entry in enumerate(entries):
        array[index] = entry
    return array


@deferred
def _numbers(tensor: Tensor) -> list[int]:
    return tensor.flatten().tolist()


@deferred
def _tensor(numbers: list[Any], shape: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device).reshape(shape)


@deferred
def _shape_tensor(x: Tensor, start: int, end: int | None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)
