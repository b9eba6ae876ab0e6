"""Arithmetic and comparisons: every entry for itself, with broadcasting."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.unsigned import widened
from exporters.onnx_twin.tracing import call, deferred, example

Operator = Callable[..., Tensor]


def same(function: Callable[..., Any]) -> Operator:
    """An operator without attributes that torch has as it is."""
    return lambda node, *inputs: call(function, *inputs)


def _aligned(operator: Operator) -> Operator:
    """An operator of two inputs; before opset 7 an attribute says at which axis of the first the second begins."""

    def align(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
        if node.opset < 7:
            axis = node.attribute("axis", None)
            if node.attribute("broadcast", 0) and axis is not None:
                b = _from_axis_on(a, b, axis)
        return operator(node, a, b)

    return align


@deferred
def _from_axis_on(a: Tensor, b: Tensor, axis: int) -> Tensor:
    return b.reshape(*b.shape, *[1] * (a.dim() - axis % a.dim() - b.dim()))


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of inputs, from one of two."""
    return lambda node, *inputs: reduce(lambda a, b: call(function, a, b), inputs)


@deferred
def _divide(a: Tensor, b: Tensor) -> Tensor:
    """Quotients of integers are rounded towards zero."""
    return a / b if a.is_floating_point() or b.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def divide(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    return call(torch.div, a, b) if _is_float(a) or _is_float(b) else _divide(a, b)


@deferred
def _modulo(a: Tensor, b: Tensor, truncated: bool) -> Tensor:
    return torch.fmod(a, b) if truncated else torch.remainder(a, b)


def modulo(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    return _modulo(a, b, bool(node.attribute("fmod", 0)))


@deferred
def _power(base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base."""
    return torch.pow(base, exponent).to(base.dtype)


def power(node: NodeView, base: Tensor, exponent: Tensor) -> Tensor:
    if isinstance(exponent, Tensor) and exponent.numel() == 1 and _is_float(base) and exponent.dim() <= _rank(base):
        return call(torch.pow, base, exponent.item())  # squares and roots have kernels of their own
    return _power(base, exponent)


def mean(node: NodeView, *inputs: Tensor) -> Tensor:
    return call(torch.div, _folded(torch.add)(node, *inputs), len(inputs))


def clip(node: NodeView, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if node.opset < 11:
        if node.has("min"):
            low = torch.tensor(node.required("min", float))
        if node.has("max"):
            high = torch.tensor(node.required("max", float))
    if isinstance(low, Tensor) and isinstance(high, Tensor) and _is_float(x) and low <= high:
        # ReLU6 and its like: no gradient on the bounds themselves, as in the modules exported as Clip.
        return call(F.hardtanh, x, low.item(), high.item())
    if low is not None:
        x = call(torch.clamp, x, min=low.item()) if isinstance(low, Tensor) else call(torch.maximum, x, low)
    if high is not None:
        x = call(torch.clamp, x, max=high.item()) if isinstance(high, Tensor) else call(torch.minimum, x, high)
    return x


@deferred
def _is_infinite(x: Tensor, negative: bool, positive: bool) -> Tensor:
    return torch.isinf(x) & ((x < 0) & negative | (x > 0) & positive)


def is_infinite(node: NodeView, x: Tensor) -> Tensor:
    return _is_infinite(x, bool(node.attribute("detect_negative", 1)), bool(node.attribute("detect_positive", 1)))


def _is_float(x: Tensor) -> bool:
    """Whether `x` is known to hold floats."""
    found = example(x)
    return found is not None and found.is_floating_point()


def _rank(x: Tensor) -> int:
    found = example(x)
    return -1 if found is None else found.dim()


OPERATORS: dict[str, Operator] = {
    "Abs": same(torch.abs),
    "Acos": same(torch.acos),
    "Acosh": same(torch.acosh),
    "Add": widened(_aligned(same(torch.add))),
    "And": _aligned(same(torch.logical_and)),
    "Asin": same(torch.asin),
    "Asinh": same(torch.asinh),
    "Atan": same(torch.atan),
    "Atanh": same(torch.atanh),
    "Ceil": same(torch.ceil),
    "Clip": clip,
    "Cos": same(torch.cos),
    "Cosh": same(torch.cosh),
    "Div": widened(_aligned(divide)),
    "Equal": widened(_aligned(same(torch.eq))),
    "Erf": same(torch.erf),
    "Exp": same(torch.exp),
    "Floor": same(torch.floor),
    "Greater": widened(_aligned(same(torch.gt))),
    "GreaterOrEqual": widened(same(torch.ge)),
    "IsInf": is_infinite,
    "IsNaN": same(torch.isnan),
    "Less": widened(_aligned(same(torch.lt))),
    "LessOrEqual": widened(same(torch.le)),
    "Log": same(torch.log),
    "Max": widened(_folded(torch.maximum)),
    "Mean": mean,
    "Min": widened(_folded(torch.minimum)),
    "Mod": widened(modulo),
    "Mul": widened(_aligned(same(torch.mul))),
    "Neg": same(torch.neg),
    "Not": same(torch.logical_not),
    "Or": _aligned(same(torch.logical_or)),
    "Pow": widened(_aligned(power)),
    "Reciprocal": same(torch.reciprocal),
    "Round": same(torch.round),
    "Sign": same(torch.sign),
    "Sin": same(torch.sin),
    "Sinh": same(torch.sinh),
    "Sqrt": same(torch.sqrt),
    "Sub": widened(_aligned(same(torch.sub))),
    "Sum": _folded(torch.add),
    "Tan": same(torch.tan),
    "Where": same(torch.where),
    "Xor": _aligned(same(torch.logical_xor)),
}
