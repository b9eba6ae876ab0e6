"""Shape arithmetic: `Shape -> Gather -> Mul -> Concat -> Reshape` without a tensor in between.

A small integer tensor that is computed from the shape of a running tensor is held as an array whose entries
are numbers or `Size`s, a number that is known when the twin runs. Gathering, slicing and joining then
happen at conversion, and what is left in the graph is `x.size(0)` and arithmetic on Python ints, which
neither waits for a GPU nor breaks a compiled graph. An operator that is not in the table here gets such an
array as a tensor.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.tensors import dtype_of
from exporters.onnx_twin.tracing import call, deferred, rank

LARGEST = 64
"""Shapes are short: a constant with more entries than this is no part of one."""


class Size:
    """A number that is known when the twin runs. To NumPy it is an object that does its own arithmetic."""

    __slots__ = ("proxy",)

    def __init__(self, proxy: Any) -> None:
        self.proxy = proxy

    def __add__(self, other: Any) -> Any:
        return _apply(operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return _apply(operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return _apply(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return _apply(operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return _apply(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return _apply(operator.mul, other, self)


Entries = NDArray[np.object_]


@dataclass(frozen=True)
class Sizes:
    """An integer, float or boolean tensor of which some entries are `Size`s."""

    entries: Entries


def shape_of(x: Tensor, start: int, end: int | None) -> Sizes | Tensor:
    """The sizes of `x` from axis `start` to `end`, as ONNX counts them."""
    dimensions = rank(x)
    if isinstance(x, Tensor) or dimensions is None:
        return _shape_tensor(x, start, end)
    return simplify(_array([Size(x.size(axis)) for axis in range(dimensions)[start:end]]))


def as_numbers(value: Sizes | Tensor) -> Any:
    """A flat list of numbers and proxies for numbers, or a proxy for such a list."""
    if isinstance(value, Sizes):
        return [entry.proxy if isinstance(entry, Size) else entry for entry in value.entries.ravel()]
    return _numbers(value)


def as_tensor(value: Sizes, device: Callable[[], torch.device]) -> Tensor:
    """`value` as a running tensor: int64, float32 or bool."""
    return _tensor(as_numbers(value), list(value.entries.shape), device())


def data_of(node: NodeView, value: Sizes | Tensor) -> Tensor:
    """An operator's main input, as a tensor."""
    return as_tensor(value, node.device) if isinstance(value, Sizes) else value


def as_sizes(value: Sizes | Tensor) -> Entries | None:
    """The entries of `value` if it can take part in shape arithmetic."""
    if isinstance(value, Sizes):
        return value.entries
    if isinstance(value, Tensor) and value.numel() <= LARGEST and not value.is_complex():
        return np.array(value.tolist(), dtype=object).reshape(tuple(value.shape))
    return None


def simplify(entries: Any) -> Sizes | Tensor:
    """A result of shape arithmetic, as a constant if nothing in it depends on the run."""
    if not isinstance(entries, np.ndarray):  # NumPy unpacks an array without axes
        entries = _scalar(entries)
    flat = list(entries.ravel())
    if any(isinstance(entry, Size) for entry in flat):
        return Sizes(entries)
    integers = not flat or all(isinstance(entry, int) and not isinstance(entry, bool) for entry in flat)
    return torch.tensor(flat, dtype=torch.int64 if integers else None).reshape(entries.shape)


def _scalar(entry: Any) -> Entries:
    array = np.empty((), dtype=object)
    array[()] = entry
    return array


def _array(entries: list[Any]) -> Entries:
    array = np.empty(len(entries), dtype=object)
    for index, entry in enumerate(entries):
        array[index] = entry
    return array


def _apply(function: Callable[..., Any], *entries: Any) -> Any:
    """`function` of numbers, now or when the twin runs."""
    result = call(function, *(entry.proxy if isinstance(entry, Size) else entry for entry in entries))
    return Size(result) if isinstance(result, fx.Proxy) else result


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of numbers, entry by entry."""

    def entrywise(node: NodeView, *inputs: Entries) -> Any:
        return np.frompyfunc(lambda *entries: _apply(function, *entries), len(inputs), 1)(*inputs)

    return entrywise


@deferred
def _numbers(tensor: Tensor) -> list[int]:
    return tensor.flatten().tolist()


@deferred
def _tensor(numbers: list[Any], shape: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device).reshape(shape)


@deferred
def _shape_tensor(x: Tensor, start: int, end: int | None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def _divide(a: Any, b: Any) -> Any:
    """ONNX rounds a quotient of integers towards zero."""
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _choose(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


def _gather(node: NodeView, data: Entries, indices: Entries) -> Any:
    return np.take(data, indices.astype(np.int64), axis=node.attribute("axis", 0))


def _concat(node: NodeView, *inputs: Entries) -> Any:
    return np.concatenate(inputs, axis=node.required("axis", int))


def _slice(node: NodeView, data: Entries, *bounds: Entries) -> Any:
    if node.opset < 10:
        starts, ends = node.required("starts", list), node.required("ends", list)
        axes, steps = node.attribute("axes", list(range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = list(bounds[0]), list(bounds[1])
        axes = list(bounds[2]) if len(bounds) > 2 else list(range(len(starts)))
        steps = list(bounds[3]) if len(bounds) > 3 else [1] * len(starts)
    index = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if any(isinstance(bound, Size) for bound in (axis, start, end, step)):
            return None
        index[axis] = slice(start, end, step)
    return data[tuple(index)]


def _squeeze(node: NodeView, data: Entries, axes: Entries | None = None) -> Any:
    chosen = node.attribute("axes", None) if axes is None else axes.tolist()
    return np.squeeze(data, axis=None if chosen is None else tuple(chosen))


def _unsqueeze(node: NodeView, data: Entries, axes: Entries | None = None) -> Any:
    return np.expand_dims(data, tuple(node.required("axes", list) if axes is None else axes.tolist()))


def _reshape(node: NodeView, data: Entries, shape: Entries) -> Any:
    node.ignore("allowzero")  # a shape has no axis of size 0 that could be copied
    if any(isinstance(size, Size) for size in shape):
        return None
    return data.reshape(tuple(shape))


def _cast(node: NodeView, data: Entries) -> Any:
    dtype = dtype_of(node.required("to", int), str(node))
    node.ignore("saturate", "round_mode")
    function = bool if dtype is torch.bool else float if dtype.is_floating_point else int
    return _each(function)(node, data)


def _reduce_prod(node: NodeView, data: Entries, axes: Entries | None = None) -> Any:
    node.ignore("noop_with_empty_axes", "axes")
    product = math.prod(data.ravel(), start=1)
    shape = (1,) * data.ndim if node.attribute("keepdims", 1) else ()
    return _scalar(product).reshape(shape) if data.ndim < 2 else None


SIZE_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": _each(operator.add),
    "Cast": _cast,
    "Ceil": _each(math.ceil),
    "Concat": _concat,
    "Div": _each(_divide),
    "Equal": _each(operator.eq),
    "Floor": _each(math.floor),
    "Gather": _gather,
    "Greater": _each(operator.gt),
    "Identity": lambda node, data: data,
    "Less": _each(operator.lt),
    "Max": _each(max),
    "Min": _each(min),
    "Mul": _each(operator.mul),
    "Neg": _each(operator.neg),
    "Not": _each(operator.not_),
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _each(operator.sub),
    "Unsqueeze": _unsqueeze,
    "Where": _each(_choose),
}
"""What shape arithmetic consists of: operators on arrays of numbers, each input an array.

None for what is beyond that, and is left to tensors.
"""
