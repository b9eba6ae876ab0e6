"""Operators on `Sizes`: they move entries, or compute with them as Python does with numbers."""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from exporters.onnx_read.parts import MOVING
from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators import OPERATORS
from exporters.onnx_twin.sizes import OTHER_FLOATS, Size, array_of, as_sizes, simplify
from exporters.onnx_twin.tensors import dtype_of
from exporters.onnx_twin.tracing import deferred


def on_sizes(node: NodeView, inputs: Sequence[Any]) -> Any:
    """What an operator gives for inputs of which some are `Sizes`; None where it has to be given tensors."""
    if node.op_type in MOVING and not node.domain:
        return _moved(node, inputs)
    arrays = [as_sizes(value) for value in inputs]
    name = _in_python(node)
    if name not in NUMBERS or any(array is None for array in arrays):
        return None
    if node.op_type != "ReduceProd":
        return simplify(np.frompyfunc(partial(_apply, name), len(arrays), 1)(*arrays))
    node.ignore("noop_with_empty_axes", "axes")
    data, keep = arrays[0], node.attribute("keepdims", 1)
    if data is None or data.ndim > 1:
        return None
    product = reduce(partial(_apply, name), data.ravel(), 1)
    return simplify(array_of([product]).reshape((1,) * data.ndim if keep else ()))


def _moved(node: NodeView, inputs: Sequence[Any]) -> Any:
    """The entries, moved as the operator moves numbers: it is run on their positions 0, 1, 2 and so on."""
    entries: list[Any] = []
    numbered: list[Tensor | None] = []
    for place, value in enumerate(inputs):
        if place == 0 or node.op_type == "Concat":
            array = as_sizes(value)
            if array is None:
                return None
            first = len(entries)
            entries.extend(array.ravel())
            numbered.append(torch.arange(first, len(entries)).reshape(array.shape))
        elif isinstance(value, Tensor | None):
            numbered.append(value)
        else:
            return None
    pool = array_of(entries)
    places = OPERATORS[node.op_type](node, *numbered)
    if isinstance(places, tuple):
        return tuple(simplify(pool[each.numpy()]) for each in places)
    return simplify(pool[places.numpy()])


def _in_python(node: NodeView) -> str:
    """The row of `NUMBERS` that an operator is; empty for none."""
    if node.op_type == "Cast":
        dtype = dtype_of(node.required("to", int), str(node))
        node.ignore("saturate", "round_mode")
        if dtype in OTHER_FLOATS:
            return ""
        return "bool" if dtype is torch.bool else "float" if dtype.is_floating_point else "int"
    fmod = node.op_type == "Mod" and node.attribute("fmod", 0)  # the sign is the dividend's then
    return "" if node.domain or fmod else node.op_type


def _apply(name: str, *entries: Any) -> Any:
    """A row of `NUMBERS`, now or when the twin runs."""
    result: Any = _number(name, *(entry.proxy if isinstance(entry, Size) else entry for entry in entries))
    return Size(result) if isinstance(result, fx.Proxy) else result


@deferred
def _number(name: str, *numbers: Any) -> Any:
    """As float32, in which files calculate: 0.7 is a little less there, and seven tenths of 10 are 7 nevertheless."""
    result = NUMBERS[name](*numbers)
    return float(np.float32(result)) if isinstance(result, float) else result


def _divide(a: Any, b: Any) -> Any:
    """ONNX rounds a quotient of integers towards zero."""
    if isinstance(a, float) or isinstance(b, float):
        return a / b if b else a * math.inf  # Python would raise
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


NUMBERS: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Ceil": lambda a: float(math.ceil(a)),
    "Div": _divide,
    "Equal": operator.eq,
    "Floor": lambda a: float(math.floor(a)),
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Max": lambda *values: max(values),
    "Min": lambda *values: min(values),
    "Mod": operator.mod,
    "Mul": operator.mul,
    "Neg": operator.neg,
    "ReduceProd": operator.mul,
    "Sub": operator.sub,
    "Where": lambda condition, a, b: a if condition else b,
    "bool": bool,
    "float": float,
    "int": int,
}
"""Operators as functions of Python's numbers, and the types that Cast knows."""
