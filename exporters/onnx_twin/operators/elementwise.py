"""Arithmetic, comparisons and bits: every entry for itself, with broadcasting."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator, folded, row
from exporters.onnx_twin.tensors import dtype_of
from exporters.onnx_twin.tracing import call, deferred, example, rank

WIDENED = (torch.uint16, torch.uint32)
"""Types that torch stores and hardly calculates with. int64 holds all of their numbers."""


def _widened(operator: Operator) -> Operator:
    """`operator`, calculated in int64 where an input has a type of WIDENED; uint64 is refused."""

    def calculate(node: NodeView, *inputs: Tensor) -> Tensor:
        dtypes = [_dtype(x) for x in inputs]
        if torch.uint64 in dtypes:
            node.refuse("torch does not calculate with uint64")
        if not any(dtype in WIDENED for dtype in dtypes):
            return operator(node, *inputs)  # type: ignore[no-any-return]
        pairs = zip(inputs, dtypes, strict=True)
        wide = [call(Tensor.to, x, torch.int64) if dtype in WIDENED else x for x, dtype in pairs]
        result = operator(node, *wide)
        return call(Tensor.to, result, dtypes[0]) if _dtype(result) is torch.int64 else result

    return calculate


def _aligned(operator: Operator) -> Operator:
    """`operator` of two inputs; before opset 7 an attribute says at which axis of the first the second begins."""

    def align(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
        if node.opset < 7:
            axis = node.attribute("axis", None)
            if node.attribute("broadcast", False) and axis is not None:
                b = _from_axis_on(a, b, axis)
        return operator(node, a, b)  # type: ignore[no-any-return]

    return _widened(align)


@deferred
def _from_axis_on(a: Tensor, b: Tensor, axis: int) -> Tensor:
    return b.reshape(*b.shape, *[1] * (a.dim() - axis % a.dim() - b.dim()))


@deferred
def _divide(a: Tensor, b: Tensor) -> Tensor:
    """Quotients of integers are rounded towards zero."""
    return a / b if a.is_floating_point() or b.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def divide(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    return call(torch.div, a, b) if _is_float(a) or _is_float(b) else _divide(a, b)


def modulo(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    return call(torch.fmod if node.attribute("fmod", False) else torch.remainder, a, b)


@deferred
def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base."""
    return torch.pow(base, exponent).to(base.dtype)


def power(node: NodeView, base: Tensor, exponent: Tensor) -> Tensor:
    one = isinstance(exponent, Tensor) and exponent.numel() == 1 and exponent.dim() <= (rank(base) or 0)
    if one and _is_float(base):
        return call(torch.pow, base, exponent.item())  # squares and roots have kernels of their own
    return _power(base, exponent)


def mean(node: NodeView, *inputs: Tensor) -> Tensor:
    return call(torch.div, folded(torch.add)(node, *inputs), len(inputs))


def clip(node: NodeView, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if node.opset < 11:
        low, high = (torch.tensor(node.required(name, float)) if node.has(name) else None for name in ("min", "max"))
    if isinstance(low, Tensor) and isinstance(high, Tensor) and _is_float(x) and low <= high:
        # ReLU6 and its like: no gradient on the bounds themselves, as in the modules exported as Clip.
        return call(F.hardtanh, x, low.item(), high.item())
    if low is not None:
        x = call(torch.clamp, x, min=low.item()) if isinstance(low, Tensor) else call(torch.maximum, x, low)
    if high is not None:
        x = call(torch.clamp, x, max=high.item()) if isinstance(high, Tensor) else call(torch.minimum, x, high)
    return x


@deferred
def _is_infinite(x: Tensor, detect_negative: bool, detect_positive: bool) -> Tensor:
    return torch.isinf(x) & ((x < 0) & detect_negative | (x > 0) & detect_positive)


@deferred
def _shift(x: Tensor, by: Tensor, left: bool) -> Tensor:
    """Shifted by a whole width or more, or by a negative number, only copies of the sign are left."""
    width = torch.iinfo(x.dtype).bits
    gone = (by < 0) | (by >= width)
    by = torch.where(gone, 0, by)
    if left:
        return torch.where(gone, 0, torch.bitwise_left_shift(x, by)).to(x.dtype)
    sign = torch.where(x < 0, -1, 0).to(x.dtype)
    return torch.where(gone, sign, torch.bitwise_right_shift(x, by))


def shift(node: NodeView, x: Tensor, by: Tensor) -> Tensor:
    node.required("direction", str)
    return _shift(x, by, node.choice("direction", "LEFT", "RIGHT") == "LEFT")


def cast_bits(node: NodeView, x: Tensor) -> Tensor:
    return call(Tensor.view, x, dtype_of(node.required("to", int), str(node)))


def _dtype(x: Any) -> torch.dtype | None:
    found = example(x)
    return None if found is None else found.dtype


def _is_float(x: Tensor) -> bool:
    """Whether `x` is known to hold floats."""
    dtype = _dtype(x)
    return dtype is not None and dtype.is_floating_point


NAMED_ALIKE = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "IsNaN"),
    *("Log", "Neg", "Reciprocal", "Round", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Where"),
)
"""Operators without attributes that torch has under the same name, in small letters."""

OPERATORS: dict[str, Operator] = {name: row(getattr(torch, name.lower())) for name in NAMED_ALIKE} | {
    "Add": _aligned(row(torch.add)),
    "And": _aligned(row(torch.logical_and)),
    "BitCast": cast_bits,
    "BitShift": _widened(shift),
    "BitwiseAnd": row(torch.bitwise_and),
    "BitwiseNot": _widened(row(torch.bitwise_not)),
    "BitwiseOr": row(torch.bitwise_or),
    "BitwiseXor": row(torch.bitwise_xor),
    "Clip": clip,
    "Div": _aligned(divide),
    "Equal": _aligned(row(torch.eq)),
    "Greater": _aligned(row(torch.gt)),
    "GreaterOrEqual": _widened(row(torch.ge)),
    "IsInf": row(_is_infinite, detect_negative=True, detect_positive=True),
    "Less": _aligned(row(torch.lt)),
    "LessOrEqual": _widened(row(torch.le)),
    "Max": _widened(folded(torch.maximum)),
    "Mean": mean,
    "Min": _widened(folded(torch.minimum)),
    "Mod": _widened(modulo),
    "Mul": _aligned(row(torch.mul)),
    "Not": row(torch.logical_not),
    "Or": _aligned(row(torch.logical_or)),
    "Pow": _aligned(power),
    "Sub": _aligned(row(torch.sub)),
    "Sum": folded(torch.add),
    "Xor": _aligned(row(torch.logical_xor)),
}
