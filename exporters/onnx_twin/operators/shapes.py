"""Shapes: what reads them, and what is told a shape, a size or a position by another value.

These operators take `Sizes` as they are.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.sizes import Sizes, as_numbers, data_of, shape_of
from exporters.onnx_twin.tracing import call, deferred, rank


def shape(node: NodeView, x: Tensor | Sizes) -> Tensor | Sizes:
    if isinstance(x, Sizes):  # how many sizes there are is known, whatever they are
        x = torch.empty(x.entries.shape)
    return shape_of(x, node.attribute("start", 0), node.attribute("end", None))


def size(node: NodeView, x: Tensor | Sizes) -> Tensor:
    return _count(torch.empty(x.entries.shape) if isinstance(x, Sizes) else x)


@deferred
def _count(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


@deferred
def _reshape(x: Tensor, sizes: list[int], copy_zeros: bool) -> Tensor:
    return x.reshape([x.shape[axis] if copy_zeros and not size else size for axis, size in enumerate(sizes)])


def reshape(node: NodeView, x: Tensor | Sizes, sizes: Tensor | Sizes) -> Tensor:
    data, target = data_of(node, x), as_numbers(sizes)
    copy_zeros = not node.attribute("allowzero", 0)
    if not isinstance(target, list):
        return _reshape(data, target, copy_zeros)
    if copy_zeros:
        target = [data.size(axis) if isinstance(size, int) and size == 0 else size for axis, size in enumerate(target)]
    return call(torch.reshape, data, target)


@deferred
def _flatten(x: Tensor, axis: int) -> Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def flatten(node: NodeView, x: Tensor | Sizes) -> Tensor:
    data, axis = data_of(node, x), node.attribute("axis", 1)
    return call(torch.flatten, data, 1) if axis == 1 and (rank(data) or 0) > 1 else _flatten(data, axis)


@deferred
def _expand(x: Tensor, sizes: list[int]) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(sizes)))  # type: ignore[no-untyped-call]


def expand(node: NodeView, x: Tensor | Sizes, sizes: Tensor | Sizes) -> Tensor:
    return _expand(data_of(node, x), as_numbers(sizes))


@deferred
def _tile(x: Tensor, repeats: list[int]) -> Tensor:
    return x.repeat(repeats)


def tile(node: NodeView, x: Tensor | Sizes, repeats: Tensor | Sizes) -> Tensor:
    return _tile(data_of(node, x), as_numbers(repeats))


def squeeze(node: NodeView, x: Tensor | Sizes, axes: Tensor | None = None) -> Tensor:
    data, chosen = data_of(node, x), node.axes(axes, 13)
    return call(torch.squeeze, data) if chosen is None else call(torch.squeeze, data, chosen)


@deferred
def _unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def unsqueeze(node: NodeView, x: Tensor | Sizes, axes: Tensor | None = None) -> Tensor:
    data, chosen = data_of(node, x), node.axes(axes, 13)
    if chosen is None:
        node.refuse("it has no axes")
    return call(torch.unsqueeze, data, chosen[0]) if len(chosen) == 1 else _unsqueeze(data, chosen)


def constant_of_shape(node: NodeView, sizes: Tensor | Sizes) -> Tensor:
    value = node.attribute("value", torch.zeros(1))
    return _full(as_numbers(sizes), value.item(), value.dtype, None if isinstance(sizes, Tensor) else node.device())


@deferred
def _full(sizes: list[int], value: float, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    return torch.full(sizes, value, dtype=dtype, device=device)


def range_(node: NodeView, *bounds: Tensor | Sizes) -> Tensor:
    constant = all(isinstance(bound, Tensor) for bound in bounds)
    dtypes = [bound.dtype for bound in bounds if isinstance(bound, Tensor)]
    start, end, step = (
        [*as_numbers(bound)] if isinstance(bound, Tensor | Sizes) else [as_numbers(bound)[0]] for bound in bounds
    )
    return _range(start[0], end[0], step[0], dtypes[0] if dtypes else torch.int64, None if constant else node.device())


@deferred
def _range(start: Any, end: Any, step: Any, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    count = max(0, math.ceil((end - start) / step))
    steps = torch.arange(count, dtype=dtype, device=device)
    return torch.add(torch.mul(steps, step), start).to(dtype)


OPERATORS: dict[str, Callable[..., Any]] = {
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Flatten": flatten,
    "Range": range_,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Squeeze": squeeze,
    "Tile": tile,
    "Unsqueeze": unsqueeze,
}
