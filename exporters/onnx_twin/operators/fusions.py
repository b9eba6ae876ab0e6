"""Float operators that ONNX Runtime fuses (domain com.microsoft), as files hold them that it has optimised."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.activations import hard_sigmoid, swish
from exporters.onnx_twin.operators.normalisation import rms_normalization
from exporters.onnx_twin.operators.products import conv, gemm
from exporters.onnx_twin.operators.row import Operator, folded, row
from exporters.onnx_twin.tracing import call

ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "Clip": (F.hardtanh, 2),
    "HardSigmoid": (hard_sigmoid, 2),
    "LeakyRelu": (F.leaky_relu, 1),
    "Relu": (F.relu, 0),
    "Sigmoid": (torch.sigmoid, 0),
    "Tanh": (torch.tanh, 0),
}
"""Each with the number of its parameters."""


def _activated(node: NodeView, x: Tensor, parameters: list[float]) -> Tensor:
    """The activation that the node names, after `x`."""
    if not node.attribute("activation", ""):
        return x
    name = node.choice("activation", *ACTIVATIONS)
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
    node.only("transBatchA", 0)
    node.only("transBatchB", 0)
    if node.attribute("transA", False):
        a = call(torch.transpose, a, -2, -1)
    if node.attribute("transB", False):
        b = call(torch.transpose, b, -2, -1)
    alpha, product = node.attribute("alpha", 1.0), call(torch.matmul, a, b)
    return product if alpha == 1 else call(torch.mul, product, alpha)


def _gelu_of_sum(approximate: str) -> Operator:
    """The GELU of an input and, where there is one, a bias."""
    return lambda node, *parts: call(F.gelu, folded(torch.add)(node, *parts), approximate=approximate)


def _after_sum(node: NodeView, parts: list[Tensor | None], normalise: Callable[..., Tensor], *weights: Any) -> Any:
    """A normalisation over the last axis of the sum of `parts`, and as the last output that sum."""
    total = folded(torch.add)(node, *parts)
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
    "BiasGelu": _gelu_of_sum("none"),
    "FastGelu": _gelu_of_sum("tanh"),
    "FusedConv": fused_conv,
    "FusedGemm": fused_gemm,
    "FusedMatMul": fused_matmul,
    "Gelu": row(F.gelu),
    "QuickGelu": row(swish, alpha=1.702),
    "SkipLayerNormalization": skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": skip_rms_normalization,
}

OPERATORS: dict[str, Operator] = {f"com.microsoft.{name}": operator for name, operator in FUSED.items()} | {
    "SimplifiedLayerNormalization": rms_normalization,  # written under the default domain, and not ONNX's
}
