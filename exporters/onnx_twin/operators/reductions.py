"""Sums, means and extremes over axes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator, row
from exporters.onnx_twin.tracing import call, deferred

Axes = list[int]


def _sum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keep)
    return torch.div(_sum(x, axes, keep), math.prod(x.shape[axis] for axis in axes), rounding_mode="trunc")


def _length(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The Euclidean norm, whose gradient at zero is zero; that of the root of a sum would be NaN there."""
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, 2, axes, keep)  # type: ignore[no-any-return]
    return _sum(torch.square(x), axes, keep).sqrt().to(x.dtype)


def _max(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return torch.amax(_not_empty(x, axes, largest=False), axes, keep)


def _min(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return torch.amin(_not_empty(x, axes, largest=True), axes, keep)


def _not_empty(x: Tensor, axes: Axes, largest: bool) -> Tensor:
    """`x` itself; where there is nothing to reduce, the largest or smallest value of its type."""
    sizes = list(x.shape)
    if all(sizes[axis] for axis in axes):
        return x
    for axis in axes:
        sizes[axis] = 1
    if x.dtype is torch.bool:
        end: float = largest
    elif x.is_floating_point():
        end = torch.inf if largest else -torch.inf
    else:
        end = torch.iinfo(x.dtype).max if largest else torch.iinfo(x.dtype).min
    return x.new_full(sizes, end)


def _prod(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


KINDS: dict[str, Callable[[Tensor, Axes, bool], Tensor]] = {
    "length": _length,
    "log_sum_exp": torch.logsumexp,
    "max": _max,
    "mean": _mean,
    "min": _min,
    "prod": _prod,
    "sum": _sum,
}


@deferred
def _reduced(x: Tensor, kind: str, axes: Axes, keep: bool) -> Tensor:
    """`x` over `axes`, all of them if none are named."""
    return KINDS[kind](x, axes or list(range(x.dim())), keep)


def _reduce(
    kind: str,
    *,
    since: int = 18,
    before: Callable[..., Tensor] | None = None,
    after: Callable[..., Tensor] | None = None,
) -> Operator:
    """An operator that applies `before` to every entry, reduces, and applies `after` to the results.

    Args:
        kind: of KINDS.
        since: the opset from which on the axes are an input.
    """

    def reduce(node: NodeView, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen, keep = node.axes(axes, since) or [], node.attribute("keepdims", True)
        nothing = node.attribute("noop_with_empty_axes", False) and not chosen
        x = x if before is None else call(before, x)
        x = x if nothing else _reduced(x, kind, chosen, keep)
        return x if after is None else call(after, x)

    return reduce


@deferred
def _position(x: Tensor, largest: bool, axis: int, keepdims: bool, select_last_index: bool) -> Tensor:
    function = torch.argmax if largest else torch.argmin
    if select_last_index:
        return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdims)
    return function(x, axis, keepdims)


OPERATORS: dict[str, Operator] = {
    "ArgMax": row(_position, True, axis=0, keepdims=True, select_last_index=False),
    "ArgMin": row(_position, False, axis=0, keepdims=True, select_last_index=False),
    "ReduceL1": _reduce("sum", before=torch.abs),
    "ReduceL2": _reduce("length"),
    "ReduceLogSum": _reduce("sum", after=torch.log),
    "ReduceLogSumExp": _reduce("log_sum_exp"),
    "ReduceMax": _reduce("max"),
    "ReduceMean": _reduce("mean"),
    "ReduceMin": _reduce("min"),
    "ReduceProd": _reduce("prod"),
    "ReduceSum": _reduce("sum", since=13),
    "ReduceSumSquare": _reduce("sum", before=torch.square),
}
