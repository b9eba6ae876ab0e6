"""Arithmetic, comparisons and activations: every entry for itself, with broadcasting."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.tracing import call, deferred, example

Operator = Callable[..., Tensor]


def _same(function: Callable[..., Any]) -> Operator:
    """An operator without attributes that torch has as it is."""
    return lambda node, *inputs: call(function, *inputs)


def _with(function: Callable[..., Any], **defaults: float) -> Operator:
    """An activation whose attributes are the keyword arguments of torch's."""
    return lambda node, x: call(function, x, **{name: node.attribute(name, value) for name, value in defaults.items()})


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


def gelu(node: NodeView, x: Tensor) -> Tensor:
    approximate = node.attribute("approximate", "none")
    if approximate not in ("none", "tanh"):
        node.refuse(f"attribute 'approximate' should be none or tanh, got '{approximate}'")
    return call(F.gelu, x, approximate=approximate)


def selu(node: NodeView, x: Tensor) -> Tensor:
    alpha, gamma = (
        node.attribute("alpha", 1.67326319217681884765625),
        node.attribute("gamma", 1.05070102214813232421875),
    )
    return call(torch.mul, call(F.elu, x, alpha=alpha), gamma)


def hard_sigmoid(node: NodeView, x: Tensor) -> Tensor:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return call(F.hardsigmoid, x)
    return call(torch.clamp, call(torch.add, call(torch.mul, x, alpha), beta), 0.0, 1.0)


@deferred
def _p_relu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@deferred
def _from_axis(x: Tensor, axis: int, logarithm: bool) -> Tensor:
    """Softmax over all axes from `axis` on, taken for one."""
    flat = x.flatten(axis)
    return (F.log_softmax(flat, dim=-1) if logarithm else F.softmax(flat, dim=-1)).reshape(x.shape)


def _softmax(logarithm: bool) -> Operator:
    function = F.log_softmax if logarithm else F.softmax

    def normalise(node: NodeView, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return call(function, x, dim=node.attribute("axis", -1))
        axis = node.attribute("axis", 1)
        found = example(x)
        if axis == -1 or (found is not None and axis == found.dim() - 1):
            return call(function, x, dim=-1)
        return _from_axis(x, axis, logarithm)

    return normalise


def _is_float(x: Tensor) -> bool:
    """Whether `x` is known to hold floats."""
    found = example(x)
    return found is not None and found.is_floating_point()


def _rank(x: Tensor) -> int:
    found = example(x)
    return -1 if found is None else found.dim()


OPERATORS: dict[str, Operator] = {
    "Abs": _same(torch.abs),
    "Acos": _same(torch.acos),
    "Acosh": _same(torch.acosh),
    "Add": _same(torch.add),
    "And": _same(torch.logical_and),
    "Asin": _same(torch.asin),
    "Asinh": _same(torch.asinh),
    "Atan": _same(torch.atan),
    "Atanh": _same(torch.atanh),
    "Ceil": _same(torch.ceil),
    "Celu": _with(F.celu, alpha=1.0),
    "Clip": clip,
    "Cos": _same(torch.cos),
    "Cosh": _same(torch.cosh),
    "Div": divide,
    "Elu": _with(F.elu, alpha=1.0),
    "Equal": _same(torch.eq),
    "Erf": _same(torch.erf),
    "Exp": _same(torch.exp),
    "Floor": _same(torch.floor),
    "Gelu": gelu,
    "Greater": _same(torch.gt),
    "GreaterOrEqual": _same(torch.ge),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": _same(F.hardswish),
    "IsNaN": _same(torch.isnan),
    "LeakyRelu": lambda node, x: call(F.leaky_relu, x, node.attribute("alpha", 0.01)),
    "Less": _same(torch.lt),
    "LessOrEqual": _same(torch.le),
    "Log": _same(torch.log),
    "LogSoftmax": _softmax(logarithm=True),
    "Max": _folded(torch.maximum),
    "Mean": mean,
    "Min": _folded(torch.minimum),
    "Mish": _same(F.mish),
    "Mod": modulo,
    "Mul": _same(torch.mul),
    "Neg": _same(torch.neg),
    "Not": _same(torch.logical_not),
    "Or": _same(torch.logical_or),
    "PRelu": lambda node, x, slope: _p_relu(x, slope),
    "Pow": power,
    "Reciprocal": _same(torch.reciprocal),
    "Relu": _same(F.relu),
    "Round": _same(torch.round),
    "Selu": selu,
    "Sigmoid": _same(torch.sigmoid),
    "Sign": _same(torch.sign),
    "Sin": _same(torch.sin),
    "Sinh": _same(torch.sinh),
    "Softmax": _softmax(logarithm=False),
    "Softplus": _same(F.softplus),
    "Softsign": _same(F.softsign),
    "Sqrt": _same(torch.sqrt),
    "Sub": _same(torch.sub),
    "Sum": _folded(torch.add),
    "Tan": _same(torch.tan),
    "Tanh": _same(torch.tanh),
    "Where": _same(torch.where),
    "Xor": _same(torch.logical_xor),
}
