"""What has weights: convolutions, matrix products and normalisations."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.windows import Window, flat, paddings, window_of
from exporters.onnx_twin.tracing import call, deferred, rank

CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def conv(node: NodeView, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found = weight.shape[2:] if isinstance(weight, Tensor) else ()
    window = window_of(node, node.attribute("kernel_shape", list(found)))
    groups = node.attribute("group", 1)
    padding = window.symmetric
    if padding is None or min(padding) < 0:
        x = _pad_window(x, window)
        padding = [0] * len(window.kernel)
    convolve = CONVOLUTIONS[len(window.kernel)]
    return call(convolve, x, weight, bias, window.strides, padding, window.dilations, groups)  # type: ignore[no-any-return]


@deferred
def _pad_window(x: Tensor, window: Window) -> Tensor:
    return F.pad(x, flat(paddings(window, list(x.shape[2:]))))


def gemm(node: NodeView, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    if node.attribute("transA", 0):
        a = call(torch.t, a)
    transposed = node.attribute("transB", 0)
    if alpha != 1:
        b = call(torch.mul, b, alpha)
    if c is not None and beta != 1:
        c = call(torch.mul, c, beta)
    if isinstance(b, Tensor) and (c is None or (isinstance(c, Tensor) and c.dim() == 1 and c.numel() > 1)):
        # As a Linear layer; a constant is transposed here, once.
        return call(F.linear, a, b if transposed else b.t().contiguous(), c)
    product = call(torch.matmul, a, call(torch.t, b) if transposed else b)
    return product if c is None else call(torch.add, product, c)


def batch_normalization(
    node: NodeView, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    node.ignore("momentum", "is_test")
    if node.attribute("training_mode", 0):
        node.refuse("training_mode is on")
    if node.attribute("spatial", 1) != 1:
        node.refuse("attribute 'spatial' should be 1")
    return call(F.batch_norm, x, mean, variance, scale, shift, False, 0.0, node.attribute("epsilon", 1e-5))


def instance_normalization(node: NodeView, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return call(F.instance_norm, x, None, None, scale, shift, True, 0.0, node.attribute("epsilon", 1e-5))


@deferred
def _layer_norm(x: Tensor, scale: Tensor, shift: Tensor | None, axis: int, epsilon: float) -> Tensor:
    shape = x.shape[axis:]
    shift = None if shift is None else shift.expand(shape)
    return F.layer_norm(x, shape, scale.expand(shape), shift, epsilon)


def layer_normalization(node: NodeView, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    if node.attribute("stash_type", 1) != 1:
        node.refuse("attribute 'stash_type' should be 1")
    axis, epsilon = node.attribute("axis", -1), node.attribute("epsilon", 1e-5)
    dimensions = rank(x)
    if isinstance(scale, Tensor) and dimensions is not None and scale.dim() == dimensions - axis % dimensions:
        return call(F.layer_norm, x, list(scale.shape), scale, shift, epsilon)
    return _layer_norm(x, scale, shift, axis, epsilon)


OPERATORS: dict[str, Callable[..., Any]] = {
    "BatchNormalization": batch_normalization,
    "Conv": conv,
    "Gemm": gemm,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "MatMul": lambda node, a, b: call(torch.matmul, a, b),
}
