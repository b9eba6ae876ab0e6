"""Entries read from, or written to, positions that another tensor gives."""

from typing import Any

import torch
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator, row
from exporters.onnx_twin.tracing import call, deferred

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""ONNX's names of how several writes to one entry join, and torch's."""


@deferred
def _take(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    axis = axis % x.dim()
    taken = x.index_select(axis, _from_the_end(indices, x.shape[axis]).flatten())
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _from_the_end(indices: Tensor, size: int) -> Tensor:
    """Negative indices count from the end."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def gather(node: NodeView, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.attribute("axis", 0)
    if isinstance(indices, Tensor) and indices.dim() == 0:
        return call(torch.select, x, axis, int(indices.item()))
    if isinstance(indices, Tensor) and indices.dim() == 1 and bool((indices >= 0).all()):
        return call(torch.index_select, x, axis, indices)
    return _take(x, indices, axis)


@deferred
def _gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    return torch.gather(x, axis, _from_the_end(indices, x.shape[axis]))


@deferred
def _gather_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    index = list(indices.long().unbind(-1))
    for axis in reversed(range(batch_dims)):
        counting = torch.arange(x.shape[axis], device=x.device)
        index.insert(0, counting.reshape(-1, *[1] * (indices.dim() - 2 - axis)))
    return x[tuple(index)]


@deferred
def _scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    indices = _from_the_end(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    return x.scatter_reduce(axis, indices, updates, REDUCTIONS[reduction])


@deferred
def _scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    index = indices.long().unbind(-1)
    if reduction in ("none", "add"):
        return x.index_put(index, updates, accumulate=reduction == "add")
    # The indexed axes as one, the others as one.
    depth = len(index)
    position = torch.zeros_like(index[0])
    for entries, size in zip(index, x.shape[:depth], strict=True):
        position = position * size + _from_the_end(entries, size)
    rows = x.reshape(x.shape[:depth].numel(), -1)
    updates = updates.reshape(position.numel(), -1)
    positions = position.reshape(-1, 1).expand_as(updates)
    return rows.scatter_reduce(0, positions, updates, REDUCTIONS[reduction]).reshape(x.shape)


@deferred
def _one_hot(indices: Tensor, depth: Tensor | int, values: Tensor, axis: int) -> Tensor:
    count = int(depth)
    dimensions = indices.dim() + 1
    classes = torch.arange(count, device=indices.device).reshape(-1, *[1] * (dimensions - 1 - axis % dimensions))
    hot = _from_the_end(indices, count).unsqueeze(axis) == classes
    return torch.where(hot, values[1], values[0])


def one_hot(node: NodeView, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    return _one_hot(indices, _number(depth), values, node.attribute("axis", -1))


@deferred
def _top_k(x: Tensor, k: Tensor | int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """Of equal entries the first comes first, which `torch.topk` does not promise."""
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, int(k)), indices.narrow(axis, 0, int(k))


def top_k(node: NodeView, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    node.ignore("sorted")  # sorted entries are allowed in any case
    count = node.required("k", int) if k is None else _number(k)
    found = _top_k(x, count, node.attribute("axis", -1), node.attribute("largest", True))
    return found[0], found[1]


def _number(value: Tensor) -> Any:
    """A tensor of one entry as an int, where it is known already; a GPU would have to be waited for when it runs."""
    return int(value) if isinstance(value, Tensor) else value


@deferred
def _compress(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    chosen = condition.nonzero()[:, 0]
    return x.flatten().index_select(0, chosen) if axis is None else x.index_select(axis, chosen)


@deferred
def _non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).t() if x.dim() else torch.nonzero(x.reshape(1))[:, :0].t()


@deferred
def _accumulate(x: Tensor, axis: Tensor | int, product: bool, exclusive: bool, backwards: bool) -> Tensor:
    """Running sums or products. An exclusive one starts with the neutral element, and leaves out each entry itself."""
    axis = int(axis)
    if backwards:
        x = x.flip(axis)
    if exclusive:
        first = torch.full_like(x.narrow(axis, 0, 1), 1 if product else 0)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    x = torch.cumprod(x, axis, dtype=x.dtype) if product else torch.cumsum(x, axis, dtype=x.dtype)
    return x.flip(axis) if backwards else x


def _cumulative(product: bool) -> Operator:
    return lambda node, x, axis: _accumulate(
        x, _number(axis), product, node.attribute("exclusive", False), node.attribute("reverse", False)
    )


SCATTER = row(_scatter_elements, axis=0, reduction=("none", *REDUCTIONS))

OPERATORS: dict[str, Operator] = {
    "Compress": row(_compress, axis=None),
    "CumProd": _cumulative(product=True),
    "CumSum": _cumulative(product=False),
    "Gather": gather,
    "GatherElements": row(_gather_elements, axis=0),
    "GatherND": row(_gather_nd, batch_dims=0),
    "NonZero": row(_non_zero),
    "OneHot": one_hot,
    "Scatter": SCATTER,
    "ScatterElements": SCATTER,
    "ScatterND": row(_scatter_nd, reduction=("none", *REDUCTIONS)),
    "TopK": top_k,
}
