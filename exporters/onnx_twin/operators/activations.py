"""Activations, and those that normalise along an axis."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.elementwise import Operator, same
from exporters.onnx_twin.tracing import call, deferred, rank


def _with(function: Callable[..., Any], **defaults: float) -> Operator:
    """An activation whose attributes are the keyword arguments of torch's."""
    return lambda node, x: call(function, x, **{name: node.attribute(name, value) for name, value in defaults.items()})


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


def p_relu(node: NodeView, x: Tensor, slope: Tensor) -> Tensor:
    if node.opset < 7 and isinstance(slope, Tensor) and slope.numel() > 1:
        return call(F.prelu, x, slope)  # one slope a channel
    return _p_relu(x, slope)


@deferred
def _shrink(x: Tensor, edge: float, bias: float) -> Tensor:
    """Towards zero by `bias`, and zero between the edges."""
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, torch.zeros_like(x)))


def shrink(node: NodeView, x: Tensor) -> Tensor:
    return _shrink(x, node.attribute("lambd", 0.5), node.attribute("bias", 0.0))


def swish(node: NodeView, x: Tensor) -> Tensor:
    alpha = node.attribute("alpha", 1.0)
    if alpha == 1:
        return call(F.silu, x)
    return call(torch.mul, x, call(torch.sigmoid, call(torch.mul, x, alpha)))


@deferred
def _hardmax(x: Tensor, axis: int) -> Tensor:
    """One at the first of the largest entries."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


@deferred
def _hardmax_from(x: Tensor, axis: int) -> Tensor:
    """Over all axes from `axis` on, taken for one."""
    flat = x.flatten(axis)
    return torch.zeros_like(flat).scatter(-1, flat.argmax(-1, keepdim=True), 1).reshape(x.shape)


def hardmax(node: NodeView, x: Tensor) -> Tensor:
    if node.opset >= 13:
        return _hardmax(x, node.attribute("axis", -1))
    return _hardmax_from(x, node.attribute("axis", 1))


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
        axis, dimensions = node.attribute("axis", 1), rank(x)
        if axis == -1 or (dimensions is not None and axis == dimensions - 1):
            return call(function, x, dim=-1)
        return _from_axis(x, axis, logarithm)

    return normalise


OPERATORS: dict[str, Operator] = {
    "Celu": _with(F.celu, alpha=1.0),
    "Elu": _with(F.elu, alpha=1.0),
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": same(F.hardswish),
    "Hardmax": hardmax,
    "LeakyRelu": lambda node, x: call(F.leaky_relu, x, node.attribute("alpha", 0.01)),
    "LogSoftmax": _softmax(logarithm=True),
    "Mish": same(F.mish),
    "PRelu": p_relu,
    "Relu": same(F.relu),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": same(torch.sigmoid),
    "Softmax": _softmax(logarithm=False),
    "Softplus": same(F.softplus),
    "Softsign": same(F.softsign),
    "SwiGLU": lambda node, gate, x: call(torch.mul, swish(node, gate), x),
    "Swish": swish,
    "Tanh": same(torch.tanh),
    "ThresholdedRelu": lambda node, x: call(F.threshold, x, node.attribute("alpha", 1.0), 0.0),
}
