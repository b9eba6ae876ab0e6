"""Entries read from, or written to, positions that another tensor gives."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exporters.onnx_twin.node import NodeView
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
def _gather_nd(x: Tensor, indices: Tensor, batch_axes: int) -> Tensor:
    index = list(indices.long().unbind(-1))
    for axis in reversed(range(batch_axes)):
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


def _reduction(node: NodeView) -> str:
    reduction = node.attribute("reduction", "none")
    if reduction not in ("none", *REDUCTIONS):
        node.refuse(f"attribute 'reduction' should be none, {', '.join(REDUCTIONS)}, got '{reduction}'")
    return reduction


def scatter_elements(node: NodeView, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return _scatter_elements(x, indices, updates, node.attribute("axis", 0), _reduction(node))


def scatter_nd(node: NodeView, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return _scatter_nd(x, indices, updates, _reduction(node))


@deferred
def _one_hot(indices: Tensor, depth: Tensor | int, values: Tensor, axis: int) -> Tensor:
    count = int(depth)
    dimensions = indices.dim() + 1
    classes = torch.arange(count, device=indices.device).reshape(-1, *[1] * (dimensions - 1 - axis % dimensions))
    hot = _from_the_end(indices, count).unsqueeze(axis) == classes
    return torch.where(hot, values[1], values[0])


def one_hot(node: NodeView, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count = int(depth) if isinstance(depth, Tensor) else depth
    return _one_hot(indices, count, values, node.attribute("axis", -1))


@deferred
def _top_k(x: Tensor, k: Tensor | int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """Of equal entries the first comes first, which `torch.topk` does not promise."""
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, int(k)), indices.narrow(axis, 0, int(k))


def top_k(node: NodeView, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    node.ignore("sorted")  # sorted entries are allowed in any case
    count: Any = node.required("k", int) if k is None else k
    if isinstance(count, Tensor):
        count = int(count)
    found = _top_k(x, count, node.attribute("axis", -1), bool(node.attribute("largest", 1)))
    return found[0], found[1]


@deferred
def _compress(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    chosen = condition.nonzero()[:, 0]
    return x.flatten().index_select(0, chosen) if axis is None else x.index_select(axis, chosen)


@deferred
def _non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).t() if x.dim() else torch.nonzero(x.reshape(1))[:, :0].t()


OPERATORS: dict[str, Callable[..., Any]] = {
    "Compress": lambda node, x, condition: _compress(x, condition, node.attribute("axis", None)),
    "Gather": gather,
    "GatherElements": lambda node, x, indices: _gather_elements(x, indices, node.attribute("axis", 0)),
    "GatherND": lambda node, x, indices: _gather_nd(x, indices, node.attribute("batch_dims", 0)),
    "NonZero": lambda node, x: _non_zero(x),
    "OneHot": one_hot,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TopK": top_k,
}
