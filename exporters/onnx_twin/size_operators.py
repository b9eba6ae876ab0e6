"""The table of what shape arithmetic consists of."""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.sizes import OTHER_FLOATS, Entries, Size, apply, scalar
from exporters.onnx_twin.tensors import dtype_of
from exporters.onnx_twin.tracing import deferred


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of numbers, entry by entry."""

    def entrywise(node: NodeView, *inputs: Entries) -> Any:
        return np.frompyfunc(lambda *entries: apply(function, *entries), len(inputs), 1)(*inputs)

    return entrywise


@deferred
def _divide(a: Any, b: Any) -> Any:
    """ONNX rounds a quotient of integers towards zero."""
    if isinstance(a, float) or isinstance(b, float):
        return a / b if b else a * math.inf  # Python would raise
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


@deferred
def _choose(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


# Python's own functions of numbers, as functions that can be deferred.


@deferred
def _bool(a: Any) -> bool:
    return bool(a)


@deferred
def _int(a: Any) -> int:
    return int(a)


@deferred
def _float(a: Any) -> float:
    return float(a)


@deferred
def _floor(a: Any) -> Any:
    return float(math.floor(a))


@deferred
def _ceil(a: Any) -> Any:
    return float(math.ceil(a))


@deferred
def _maximum(*values: Any) -> Any:
    return max(values)


@deferred
def _minimum(*values: Any) -> Any:
    return min(values)


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
    node.ignore("allowzero")  # a 0 is left to tensors
    if any(isinstance(size, Size) or size == 0 for size in shape):
        return None
    return data.reshape(tuple(shape))


def _cast(node: NodeView, data: Entries) -> Any:
    dtype = dtype_of(node.required("to", int), str(node))
    node.ignore("saturate", "round_mode")
    if dtype in OTHER_FLOATS:
        return None
    function = _bool if dtype is torch.bool else _float if dtype.is_floating_point else _int
    return _each(function)(node, data)


def _modulo(node: NodeView, a: Entries, b: Entries) -> Any:
    """The sign is the divisor's, as in Python; with `fmod` it is not."""
    return None if node.attribute("fmod", 0) else _each(operator.mod)(node, a, b)


def _reduce_prod(node: NodeView, data: Entries, axes: Entries | None = None) -> Any:
    node.ignore("noop_with_empty_axes", "axes")
    product = math.prod(data.ravel(), start=1)
    shape = (1,) * data.ndim if node.attribute("keepdims", 1) else ()
    return scalar(product).reshape(shape) if data.ndim < 2 else None


SIZE_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": _each(operator.add),
    "Cast": _cast,
    "Ceil": _each(_ceil),
    "Concat": _concat,
    "Div": _each(_divide),
    "Equal": _each(operator.eq),
    "Floor": _each(_floor),
    "Gather": _gather,
    "Greater": _each(operator.gt),
    "GreaterOrEqual": _each(operator.ge),
    "Identity": lambda node, data: data,
    "Less": _each(operator.lt),
    "LessOrEqual": _each(operator.le),
    "Max": _each(_maximum),
    "Min": _each(_minimum),
    "Mod": _modulo,
    "Mul": _each(operator.mul),
    "Neg": _each(operator.neg),
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
