"""Float operators that ONNX Runtime fuses (domain com.microsoft), as files hold them that it has optimised."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.convolutions import conv
from exporters.onnx_twin.operators.normalisation import rms_normalization
from exporters.onnx_twin.operators.products import gemm
from exporters.onnx_twin.tracing import call, deferred

Operator = Callable[..., Any]


@deferred
def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "Clip": (F.hardtanh, 2),
    "HardSigmoid": (_hard_sigmoid, 2),
    "LeakyRelu": (F.leaky_relu, 1),
    "Relu": (F.relu, 0),
    "Sigmoid": (torch.sigmoid, 0),
    "Tanh": (torch.tanh, 0),
}
"""Each with the number of its parameters."""


def _activated(node: NodeView, x: Tensor, parameters: list[float]) -> Tensor:
    """The activation that the node names, after `x`."""
    name = node.attribute("activation", "")
    if not name:
        return x
    if name not in ACTIVATIONS:
        node.refuse(f"attribute 'activation' should be one of {', '.join(ACTIVATIONS)}, got '{name}'")
    function, count = ACTIVATIONS[name]
    if len(parameters) < count:
        node.refuse(f"activation '{name}' takes {count} parameters, got {len(parameters)}")
    return call(function, x, *parameters[:count])


def fused_conv(
    node: NodeView, x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    result = conv(node, x, weight, bias)
    if residual is not None:
        result = call(torch.add, result, residual)
    return _activated(node, result, node.attribute("activation_params", []))


def fused_gemm(node: NodeView, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    parameters = [node.attribute(name, 0.0) for name in names if node.has(name)]
    return _activated(node, gemm(node, a, b, c), parameters)


def fused_matmul(node: NodeView, a: Tensor, b: Tensor) -> Tensor:
    for name in ("transBatchA", "transBatchB"):
        if node.attribute(name, 0):
            node.refuse(f"attribute '{name}' should be 0")
    if node.attribute("transA", 0):
        a = call(torch.transpose, a, -2, -1)
    if node.attribute("transB", 0):
        b = call(torch.transpose, b, -2, -1)
    alpha, product = node.attribute("alpha", 1.0), call(torch.matmul, a, b)
    return product if alpha == 1 else call(torch.mul, product, alpha)


@deferred
def _quick_gelu(x: Tensor, alpha: float) -> Tensor:
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def fast_gelu(node: NodeView, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return call(F.gelu, x if bias is None else call(torch.add, x, bias), approximate="tanh")


def _after_sum(node: NodeView, parts: list[Tensor | None], normalise: Callable[..., Tensor], *weights: Any) -> Any:
    """A normalisation over the last axis of the sum of `parts`, and as the last output that sum."""
    present = [part for part in parts if part is not None]
    total = reduce(lambda a, b: call(torch.add, a, b), present)
    if any(node.outputs[1:3]):
        node.refuse("it gives the mean or the deviation, as in training")
    size = node.constant(weights[0], "gamma").numel()
    return call(normalise, total, [size], *weights, eps=node.attribute("epsilon", 1e-12)), None, None, total


def skip_layer_normalization(
    node: NodeView, x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> Any:
    return _after_sum(node, [x, skip, bias], F.layer_norm, scale, shift)


def skip_rms_normalization(node: NodeView, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    return _after_sum(node, [x, skip, bias], F.rms_norm, scale)


FUSED: dict[str, Operator] = {
    "BiasGelu": lambda node, x, bias: call(F.gelu, call(torch.add, x, bias)),
    "FastGelu": fast_gelu,
    "FusedConv": fused_conv,
    "FusedGemm": fused_gemm,
    "FusedMatMul": fused_matmul,
    "Gelu": lambda node, x: call(F.gelu, x),
    "QuickGelu": lambda node, x: _quick_gelu(x, node.attribute("alpha", 1.702)),
    "SkipLayerNormalization": skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": skip_rms_normalization,
}

OPERATORS: dict[str, Operator] = {f"com.microsoft.{name}": operator for name, operator in FUSED.items()} | {
    "SimplifiedLayerNormalization": rms_normalization,  # written under the default domain, and not ONNX's
}
