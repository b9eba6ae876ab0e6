"""Shape arithmetic: `Shape -> Gather -> Mul -> Concat -> Reshape` without a tensor in between.

A small integer tensor that is computed from the shape of a running tensor is held as an array whose entries
are numbers or `Size`s, a number that is known when the twin runs. Gathering, slicing and joining then
happen at conversion, and what is left in the graph is `x.size(0)` and arithmetic on Python ints, which
neither waits for a GPU nor breaks a compiled graph. An operator that is not in `size_operators` gets such an
array as a tensor.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from exporters.onnx_twin.tracing import call, deferred, example_number, fixed_sizes

LARGEST = 64
"""Shapes are short: a constant with more entries than this is no part of one."""

OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
"""They do not take part in shape arithmetic, whose fractions are float32."""


class Size:
    """A number that is known when the twin runs. To NumPy it is an object that does its own arithmetic."""

    __slots__ = ("proxy",)

    def __init__(self, proxy: Any) -> None:
        self.proxy = proxy

    def __add__(self, other: Any) -> Any:
        return apply(operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return apply(operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return apply(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return apply(operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return apply(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return apply(operator.mul, other, self)


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
    return simplify(_array([Size(x.size(axis)) if sizes[axis] is None else sizes[axis] for axis in axes]))


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
    if isinstance(value, Tensor) and value.numel() <= LARGEST and value.dtype not in OTHER_FLOATS:
        return np.array(value.tolist(), dtype=object).reshape(tuple(value.shape))
    return None


def simplify(entries: Any) -> Sizes | Tensor:
    """A result of shape arithmetic, as a constant if nothing in it depends on the run."""
    if not isinstance(entries, np.ndarray):  # NumPy unpacks an array without axes
        entries = scalar(entries)
    flat = list(entries.ravel())
    if any(isinstance(entry, Size) for entry in flat):
        return Sizes(entries)
    integers = not flat or all(isinstance(entry, int) and not isinstance(entry, bool) for entry in flat)
    return torch.tensor(flat, dtype=torch.int64 if integers else None).reshape(entries.shape)


def scalar(entry: Any) -> Entries:
    array = np.empty((), dtype=object)
    array[()] = entry
    return array


def _array(entries: list[Any]) -> Entries:
    array = np.empty(len(entries), dtype=object)
    for index, entry in enumerate(entries):
        array[index] = entry
    return array


def apply(function: Callable[..., Any], *entries: Any) -> Any:
    """`function` of numbers, now or when the twin runs."""
    result = call(function, *(entry.proxy if isinstance(entry, Size) else entry for entry in entries))
    if isinstance(result, fx.Proxy):
        return Size(_single(result) if isinstance(example_number(result), float) else result)
    return _single(result) if isinstance(result, float) else result


@deferred
def _single(number: Any) -> float:
    """As float32, in which files calculate: 0.7 is a little less there, and seven tenths of 10 are 7 nevertheless."""
    return float(np.float32(number))


@deferred
def _numbers(tensor: Tensor) -> list[int]:
    return tensor.flatten().tolist()


@deferred
def _tensor(numbers: list[Any], shape: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device).reshape(shape)


@deferred
def _shape_tensor(x: Tensor, start: int, end: int | None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)
