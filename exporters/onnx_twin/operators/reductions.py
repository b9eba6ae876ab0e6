"""Sums, means and extremes over axes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.tracing import call, deferred

Reduction = Callable[[Tensor, list[int], bool], Tensor]


@deferred
def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, _all(x, axes), keep, dtype=x.dtype)


@deferred
def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, _all(x, axes), keep)
    axes = _all(x, axes)
    total = torch.sum(x, axes, keep, dtype=x.dtype)
    return torch.div(total, math.prod(x.shape[axis] for axis in axes), rounding_mode="trunc")


@deferred
def _length(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """The Euclidean norm, whose gradient at zero is zero; that of the root of a sum would be no number there."""
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, 2, _all(x, axes), keep)  # type: ignore[no-any-return]
    return torch.sum(torch.square(x), _all(x, axes), keep, dtype=x.dtype).sqrt().to(x.dtype)


@deferred
def _max(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _extreme(torch.amax, x, axes, keep, largest=False)


@deferred
def _min(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _extreme(torch.amin, x, axes, keep, largest=True)


def _extreme(function: Callable[..., Tensor], x: Tensor, axes: list[int], keep: bool, largest: bool) -> Tensor:
    """An extreme; over nothing, the other end of the type's range."""
    axes = _all(x, axes)
    if any(x.shape[axis] == 0 for axis in axes):
        return torch.full(torch.sum(x, axes, keep).shape, _end(x.dtype, largest), dtype=x.dtype, device=x.device)
    return function(x, axes, keep)


def _end(dtype: torch.dtype, largest: bool) -> float:
    """The largest or smallest value of a type."""
    if dtype is torch.bool:
        return largest
    if dtype.is_floating_point:
        return torch.inf if largest else -torch.inf
    return torch.iinfo(dtype).max if largest else torch.iinfo(dtype).min


@deferred
def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in _all(x, axes)), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


@deferred
def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, _all(x, axes), keep)


def _all(x: Tensor, axes: list[int]) -> list[int]:
    return axes or list(range(x.dim()))


def _reduce(
    function: Reduction,
    *,
    since: int = 18,
    before: Callable[..., Tensor] | None = None,
    after: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """An operator that applies `before` to every entry, `function` over the axes and `after` to the results.

    Args:
        since: the opset from which on the axes are an input.
    """

    def reduce(node: NodeView, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = node.axes(axes, since) or []
        keep = bool(node.attribute("keepdims", 1))
        nothing = bool(node.attribute("noop_with_empty_axes", 0)) and not chosen
        x = x if before is None else call(before, x)
        x = x if nothing else function(x, chosen, keep)
        return x if after is None else call(after, x)

    return reduce


@deferred
def _position(x: Tensor, largest: bool, axis: int, keep: bool, last: bool) -> Tensor:
    function = torch.argmax if largest else torch.argmin
    return x.shape[axis] - 1 - function(x.flip(axis), axis, keep) if last else function(x, axis, keep)


def _arg_extreme(largest: bool) -> Callable[..., Tensor]:
    def find(node: NodeView, x: Tensor) -> Tensor:
        keep, last = bool(node.attribute("keepdims", 1)), bool(node.attribute("select_last_index", 0))
        return _position(x, largest, node.attribute("axis", 0), keep, last)

    return find


OPERATORS = {
    "ArgMax": _arg_extreme(largest=True),
    "ArgMin": _arg_extreme(largest=False),
    "ReduceL1": _reduce(_sum, before=torch.abs),
    "ReduceL2": _reduce(_length),
    "ReduceLogSum": _reduce(_sum, after=torch.log),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(_max),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(_min),
    "ReduceProd": _reduce(_prod),
    "ReduceSum": _reduce(_sum, since=13),
    "ReduceSumSquare": _reduce(_sum, before=torch.square),
}
