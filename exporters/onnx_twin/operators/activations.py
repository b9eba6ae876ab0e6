"""Activations, and those that normalise along an axis."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator, row
from exporters.onnx_twin.tracing import call, deferred, rank


@deferred
def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return F.elu(x, alpha) * gamma


@deferred
def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return (x * alpha + beta).clamp(0.0, 1.0)


@deferred
def _p_relu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def p_relu(node: NodeView, x: Tensor, slope: Tensor) -> Tensor:
    if node.opset < 7 and isinstance(slope, Tensor) and slope.numel() > 1:
        return call(F.prelu, x, slope)  # one slope per channel
    return _p_relu(x, slope)


@deferred
def _shrink(x: Tensor, lambd: float, bias: float) -> Tensor:
    """Towards zero by `bias`, and zero between -lambd and lambd."""
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


@deferred
def swish(x: Tensor, alpha: float) -> Tensor:
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@deferred
def _hardmax(x: Tensor, dim: int) -> Tensor:
    """One at the first of the largest entries."""
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1)


def _normalised(function: Callable[..., Tensor]) -> Operator:
    """`function` along one axis; before opset 13 along all axes from that one on, joined to one."""

    def normalise(node: NodeView, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return call(function, x, dim=node.attribute("axis", -1))
        axis = node.attribute("axis", 1)
        if axis in (-1, (rank(x) or 0) - 1):
            return call(function, x, dim=-1)
        return call(Tensor.reshape_as, call(function, call(torch.flatten, x, axis), dim=-1), x)

    return normalise


LEARNED: dict[Any, tuple[int, ...]] = {F.prelu: (1,), _p_relu: (1,)}

OPERATORS: dict[str, Operator] = {
    "Celu": row(F.celu, alpha=1.0),
    "Elu": row(F.elu, alpha=1.0),
    "Gelu": row(F.gelu, approximate=("none", "tanh")),
    "HardSigmoid": row(hard_sigmoid, alpha=0.2, beta=0.5),
    "HardSwish": row(F.hardswish),
    "Hardmax": _normalised(_hardmax),
    "LeakyRelu": lambda node, x: call(F.leaky_relu, x, node.attribute("alpha", 0.01)),
    "LogSoftmax": _normalised(F.log_softmax),
    "Mish": row(F.mish),
    "PRelu": p_relu,
    "Relu": row(F.relu),
    "Selu": row(_selu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Shrink": row(_shrink, lambd=0.5, bias=0.0),
    "Sigmoid": row(torch.sigmoid),
    "Softmax": _normalised(F.softmax),
    "Softplus": row(F.softplus),
    "Softsign": row(F.softsign),
    "SwiGLU": lambda node, gate, x: call(torch.mul, swish(gate, node.attribute("alpha", 1.0)), x),
    "Swish": row(swish, alpha=1.0),
    "Tanh": row(torch.tanh),
    "ThresholdedRelu": lambda node, x: call(F.threshold, x, node.attribute("alpha", 1.0), 0.0),
}
