"""Sums of products: convolutions, transposed ones, and products of matrices."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator, row
from exporters.onnx_twin.operators.windows import Window, flat, padded, window_of
from exporters.onnx_twin.tracing import call, deferred, fixed_sizes

CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv(node: NodeView, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = window_of(node, _kernel(node, weight))
    padding = window.symmetric
    if padding is None or min(padding) < 0:
        x = padded(x, window)
        padding = [0] * len(window.kernel)
    convolve = CONVOLUTIONS[len(window.kernel)]
    groups = node.attribute("group", 1)
    return call(convolve, x, weight, bias, window.strides, padding, window.dilations, groups)  # type: ignore[no-any-return]


def _kernel(node: NodeView, weight: Tensor) -> list[int]:
    """The spatial sizes of the weight."""
    sizes = (fixed_sizes(weight) or [])[2:]
    if not node.has("kernel_shape") and (not sizes or None in sizes):
        node.refuse("the size of its kernel is not known")
    return node.attribute("kernel_shape", [size or 0 for size in sizes])


def conv_transpose(node: NodeView, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = window_of(node, _kernel(node, weight))
    rank = len(window.kernel)
    extra = node.attribute("output_padding", [0] * rank)
    wanted = node.attribute("output_shape", [0] * rank)[-rank:]
    upper = node.attribute("auto_pad", "NOTSET") == "SAME_UPPER"
    return _conv_transpose(x, weight, bias, window, extra, wanted, node.attribute("group", 1), upper)


@deferred
def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    extra: list[int],
    wanted: list[int],
    groups: int,
    upper: bool,
) -> Tensor:
    """The whole of a transposed convolution with its ends cut off, or continued where padding says so.

    The result has the sizes `wanted`. Where these are 0, padding is as declared, or SAME: `strides` times the sizes.
    """
    cuts = []
    for axis, (size, span, stride) in enumerate(zip(x.shape[2:], window.span, window.strides, strict=True)):
        if window.pads is None or any(wanted):
            total = stride * (size - 1) + extra[axis] + span - (wanted[axis] or size * stride)
            # A small kernel's gaps at the end stay away, as in ONNX Runtime.
            total = total if wanted[axis] else max(0, total)
            begin = max(0, total // 2 if upper else total - total // 2)
            end = total - begin
        else:
            begin, end = window.pads[axis]
        cuts.append((-begin, extra[axis] - end))
    whole = TRANSPOSED[len(cuts)](x, weight, None, window.strides, 0, 0, groups, window.dilations)
    whole = F.pad(whole, flat(cuts))
    return whole if bias is None else whole + bias.reshape(-1, *[1] * len(cuts))


def gemm(node: NodeView, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    if node.attribute("transA", False):
        a = call(torch.t, a)
    transposed = node.attribute("transB", False)
    node.ignore("broadcast")  # before opset 7 it allowed what is allowed since
    if alpha != 1:
        b = call(torch.mul, b, alpha)
    if c is not None and beta != 1:
        c = call(torch.mul, c, beta)
    if isinstance(b, Tensor) and (c is None or (isinstance(c, Tensor) and c.dim() == 1 and c.numel() > 1)):
        # As a Linear layer; a constant is transposed here, once.
        return call(F.linear, a, b if transposed else b.t().contiguous(), c)
    product = call(torch.matmul, a, call(torch.t, b) if transposed else b)
    return product if c is None else call(torch.add, product, c)


def einsum(node: NodeView, *inputs: Tensor) -> Any:
    return call(torch.einsum, node.required("equation", str), *inputs)


LEARNED: dict[Any, tuple[int, ...]] = {
    **dict.fromkeys(CONVOLUTIONS.values(), (1, 2)),
    F.linear: (1, 2),
    torch.matmul: (0, 1),
    _conv_transpose: (1, 2),
}

OPERATORS: dict[str, Operator] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Det": row(torch.det),
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": row(torch.matmul),
}
