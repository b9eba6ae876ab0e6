"""Entries that move and do not change: joining, picking, permuting."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.tracing import call, deferred


@deferred
def _reverse(x: Tensor) -> Tensor:
    return x.permute(*range(x.dim() - 1, -1, -1))


def transpose(node: NodeView, x: Tensor) -> Tensor:
    order = node.attribute("perm", None)
    return _reverse(x) if order is None else call(torch.permute, x, order)


def concat(node: NodeView, *inputs: Tensor) -> Tensor:
    return call(torch.cat, list(inputs), node.required("axis", int))


@deferred
def _take(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Negative indices count from the end."""
    axis = axis % x.dim()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    taken = x.index_select(axis, indices.flatten().long())
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather(node: NodeView, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.attribute("axis", 0)
    if isinstance(indices, Tensor) and indices.dim() == 0:
        return call(torch.select, x, axis, int(indices.item()))
    return _take(x, indices, axis)


@deferred
def _gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


OPERATORS: dict[str, Callable[..., Any]] = {
    "Concat": concat,
    "Gather": gather,
    "GatherElements": lambda node, x, indices: _gather_elements(x, indices, node.attribute("axis", 0)),
    "Transpose": transpose,
}
