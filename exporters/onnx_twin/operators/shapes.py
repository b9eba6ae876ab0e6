"""Shapes: what reads them, and what is told a shape, a size or a position by another value.

Where `operators.TAKE_SIZES` says so, inputs may be `Sizes`.
"""

import math
from typing import Any

import torch
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator, row
from exporters.onnx_twin.sizes import Sizes, as_numbers, shape_of
from exporters.onnx_twin.tracing import call, deferred, fixed_sizes

Amounts = Tensor | Sizes
"""A tensor of sizes, positions or factors."""


def shape(node: NodeView, x: Tensor) -> Tensor | Sizes:
    return shape_of(x, node.attribute("start", 0), node.attribute("end", None))


def size(node: NodeView, x: Tensor) -> Tensor:
    sizes = fixed_sizes(x)
    return _count(x) if sizes is None or None in sizes else torch.tensor(math.prod(size or 0 for size in sizes))


@deferred
def _count(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


@deferred
def _reshape(x: Tensor, sizes: list[int], copy_zeros: bool) -> Tensor:
    return x.reshape([x.shape[axis] if copy_zeros and not size else size for axis, size in enumerate(sizes)])


def reshape(node: NodeView, x: Tensor, sizes: Amounts) -> Tensor:
    target, copy_zeros = as_numbers(sizes), not node.attribute("allowzero", False)
    if not isinstance(target, list):
        return _reshape(x, target, copy_zeros)
    if copy_zeros:
        target = [x.size(axis) if isinstance(size, int) and size == 0 else size for axis, size in enumerate(target)]
    return call(torch.reshape, x, target)


@deferred
def _flatten(x: Tensor, axis: int) -> Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@deferred
def _expand(x: Tensor, sizes: list[int]) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(sizes)))  # type: ignore[no-untyped-call]


@deferred
def _tile(x: Tensor, repeats: list[int]) -> Tensor:
    return x.repeat(repeats)


def squeeze(node: NodeView, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = node.axes(axes, 13)
    return call(torch.squeeze, x) if chosen is None else call(torch.squeeze, x, chosen)


@deferred
def _unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def unsqueeze(node: NodeView, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = node.axes(axes, 13)
    if chosen is None:
        node.refuse("it has no axes")
    return _unsqueeze(x, chosen)


def constant_of_shape(node: NodeView, sizes: Amounts) -> Tensor:
    value = node.attribute("value", torch.zeros(1))
    return _full(as_numbers(sizes), value.item(), value.dtype, None if isinstance(sizes, Tensor) else node.device())


@deferred
def _full(sizes: list[int], value: float, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    return torch.full(sizes, value, dtype=dtype, device=device)


def range_(node: NodeView, *bounds: Amounts) -> Tensor:
    constant = all(isinstance(bound, Tensor) for bound in bounds)
    dtypes = [bound.dtype for bound in bounds if isinstance(bound, Tensor)]
    start, end, step = (as_numbers(bound)[0] for bound in bounds)
    return _range(start, end, step, dtypes[0] if dtypes else torch.int64, None if constant else node.device())


@deferred
def _range(start: Any, end: Any, step: Any, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    count = max(0, math.ceil((end - start) / step))
    steps = torch.arange(count, dtype=dtype, device=device)
    return torch.add(torch.mul(steps, step), start).to(dtype)


OPERATORS: dict[str, Operator] = {
    "ConstantOfShape": constant_of_shape,
    "Expand": lambda node, x, sizes: _expand(x, as_numbers(sizes)),
    "Flatten": row(_flatten, axis=1),
    "Range": range_,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Squeeze": squeeze,
    "Tile": lambda node, x, repeats: _tile(x, as_numbers(repeats)),
    "Unsqueeze": unsqueeze,
}
