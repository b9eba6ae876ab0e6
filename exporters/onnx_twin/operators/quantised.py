"""Quantised operators: integers held as floats, so that gradients flow through them.

A quantised tensor is a float32 tensor of integers inside the twin; constants stay integers until an operator takes
them. Requantisation has the roundings of ONNX Runtime's kernels. Accumulators are exact up to 2^24 and then as exact as
float32, the runtime's up to 2^31, where they wrap around. In torchvision's CNNs not one integer differed. Where a file
computes in floats between its quantisers (on x86 that is much of one with int8 activations), a sum that is added up in
another order can put an integer on the other side of a rounding boundary.

The backward is straight-through: a quantiser's rounding counts as the identity, and beyond its range, where it
saturates, the gradient is zero. So it is the gradient of the clipped, but not rounded, network at the activations that
the rounded one really has; where a ReLU became the lower end of a range, that is the gradient of the ReLU. It is not
the gradient of the network itself, which is piecewise constant and has none. It is a direction to search in: whether an
image fools the file, the runtime says. And an attack that fails along it proves little, for a coarse or saturated
quantiser hides gradients without making anything robust; hold it against a transferred and a black-box attack.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.convolutions import conv
from exporters.onnx_twin.tensors import dtype_of
from exporters.onnx_twin.tracing import call, deferred, example, rank

Number = Tensor | float
"""A scale or an offset: a float where it is one number and known, so that nothing is looked up when the twin runs."""


class _Quantise(torch.autograd.Function):
    """`x * factor`, clipped to [low, high] and rounded half to even; backwards there is no rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Number, low: Any, high: Any) -> Tensor:
        scaled = isinstance(factor, Tensor) or factor != 1
        clipped = torch.mul(x, factor).clamp_(low, high) if scaled else x.clamp(low, high)
        ctx.save_for_backward(clipped)
        ctx.scaled, ctx.factor, ctx.limits = scaled, factor, (low, high)
        return clipped.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (clipped,), (low, high) = ctx.saved_tensors, ctx.limits
        if isinstance(low, Tensor):
            gradient = gradients[0] * ((clipped > low) & (clipped < high))
        else:
            gradient = torch.ops.aten.hardtanh_backward(gradients[0], clipped, low, high)
        return gradient.mul_(ctx.factor) if ctx.scaled else gradient, None, None, None


class _Round(torch.autograd.Function):
    """Half to even, by no more than to [low, high], and the identity backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return x.round().clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None


@deferred
def saturate(x: Tensor, factor: Number, offset: Number, low: int, high: int) -> Tensor:
    """`x * factor` as integers: rounded, moved by `offset` and clipped to [low, high]."""
    integers: Tensor = _Quantise.apply(x, factor, low - offset, high - offset)
    return integers if isinstance(offset, float) and offset == 0 else integers + offset


def as_float(x: Tensor) -> Tensor:
    """In single precision; doubles stay what they are."""
    found = example(x)
    ready = found is not None and found.dtype in (torch.float32, torch.float64)
    return x if ready else call(torch.Tensor.to, x, torch.float32)


def spread(node: NodeView, values: Tensor, like: Tensor, axis: int, block: int = 0) -> Number:
    """`values`, one or several along `axis`, in a form that broadcasts with `like`.

    Args:
        block: each stands for so many entries along `axis`; 0 where they are one value or one an entry.
    """
    values, dimensions = as_float(values), rank(like)
    found = example(values)
    if isinstance(values, Tensor) and values.numel() == 1:
        return float(values.item())
    if found is not None and (found.numel() == 1 or (found.dim() > 1 and not block)):
        return values
    if block:
        return _repeat(values, like, axis, block)
    if dimensions is None:
        node.refuse("it has a scale an entry, of a tensor whose number of axes is not known")
    return call(torch.reshape, values, [-1 if index == axis % dimensions else 1 for index in range(dimensions)])


@deferred
def _repeat(values: Tensor, like: Tensor, axis: int, block: int) -> Tensor:
    return values.repeat_interleave(block, axis).narrow(axis, 0, like.shape[axis])


def centred(node: NodeView, x: Tensor, zero_point: Tensor | None, axis: int = 0, block: int = 0) -> Tensor:
    """`x` less its zero point."""
    offset = offset_of(node, zero_point, x, axis, block)
    return as_float(x) if isinstance(offset, float) and offset == 0 else call(torch.sub, as_float(x), offset)


def offset_of(node: NodeView, zero_point: Tensor | None, like: Tensor, axis: int = 0, block: int = 0) -> Number:
    """The zero point in a form that broadcasts with `like`; 0 where there is none, or all are 0."""
    if zero_point is None or (isinstance(zero_point, Tensor) and not as_float(zero_point).any()):
        return 0.0
    return spread(node, zero_point, like, axis, block)


def type_of(node: NodeView, zero_point: Tensor | None) -> torch.dtype:
    """The type of what is quantised with this zero point, which is the zero point's own.

    Raises:
        UserError: there is none.
    """
    found = None if zero_point is None else example(zero_point)
    if found is None or found.is_floating_point():
        node.refuse("the type of its output is not known, it has no zero point")
    return found.dtype


def stored(
    node: NodeView,
    x: Tensor,
    factor: Number,
    zero_point: Tensor | None,
    dtype: torch.dtype,
    axis: int = 0,
    block: int = 0,
) -> Tensor:
    """`x * factor`, in steps from the zero point, as integers of type `dtype`."""
    limits = torch.iinfo(dtype)
    return saturate(x, factor, offset_of(node, zero_point, x, axis, block), limits.min, limits.max)


def ratio(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """`a * b / c` of scales, rounded to float32 at each step as ONNX Runtime does it."""
    product = call(torch.mul, as_float(a), as_float(b))
    return product if c is None else call(torch.div, product, as_float(c))


def quantize_linear(node: NodeView, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    node.ignore("saturate")  # it is about 8-bit floats, which are refused
    axis, block = node.attribute("axis", 1), node.attribute("block_size", 0)
    wanted = node.attribute("output_dtype", 0)
    if node.attribute("precision", 0) not in (0, 1):
        node.refuse("attribute 'precision' should be float")
    if zero_point is not None:
        dtype = type_of(node, zero_point)
    else:
        dtype = dtype_of(wanted, str(node)) if wanted else torch.uint8
    steps = call(torch.div, as_float(x), spread(node, scale, x, axis, block))
    return stored(node, steps, 1.0, zero_point, dtype, axis, block)


def dequantize_linear(node: NodeView, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    axis, block = node.attribute("axis", 1), node.attribute("block_size", 0)
    wanted, found = node.attribute("output_dtype", 0), example(scale)
    dtype = dtype_of(wanted, str(node)) if wanted else torch.float32 if found is None else found.dtype
    steps = centred(node, x, zero_point, axis, block)
    product = call(torch.mul, steps, spread(node, scale, x, axis, block))
    return product if dtype is torch.float32 else call(torch.Tensor.to, product, dtype)


@deferred
def dynamic(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`x` as integers in 0..255, their scale and their zero point, from the range of the whole of `x` and 0.

    Scale and zero point count as constants backwards. They depend on every image of a batch, here as in the runtime.
    """
    with torch.no_grad():
        low, high = (end.clamp(least, most) for end, least, most in zip(x.aminmax(), (None, 0), (0, None), strict=True))
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero_point = (-low / scale).clamp(0, 255).round()
    # Nothing lies outside the range, so that nothing saturates.
    integers: Tensor = _Round.apply(x / scale, -zero_point, 255 - zero_point)
    return integers + zero_point, scale, zero_point.to(torch.uint8)


def dynamic_quantize_linear(node: NodeView, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    result = dynamic(x)
    return result[0], result[1], result[2]


def conv_integer(
    node: NodeView, x: Tensor, w: Tensor, x_zero_point: Tensor | None = None, w_zero_point: Tensor | None = None
) -> Tensor:
    return conv(node, centred(node, x, x_zero_point), centred(node, w, w_zero_point))


def q_linear_conv(
    node: NodeView,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    dtype = type_of(node, y_zero_point)
    shift = None if bias is None else as_float(bias)
    sums = conv(node, centred(node, x, x_zero_point), centred(node, w, w_zero_point), shift)
    return stored(node, sums, spread(node, ratio(x_scale, w_scale, y_scale), w, 1), y_zero_point, dtype)


def matmul_integer(
    node: NodeView, a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """Zero points are one, one a row of `a` and one a column of `b`."""
    return call(torch.matmul, centred(node, a, a_zero_point, -2), centred(node, b, b_zero_point, -1))


def q_linear_matmul(
    node: NodeView,
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    dtype = type_of(node, y_zero_point)
    sums = matmul_integer(node, a, b, a_zero_point, b_zero_point)
    rows = example(a_scale)
    if rows is None or rows.numel() != 1:
        node.refuse("input 'a_scale' should be one number")
    return stored(node, sums, spread(node, ratio(a_scale, b_scale, y_scale), sums, -1), y_zero_point, dtype)


OPERATORS: dict[str, Callable[..., Any]] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
    "QLinearConv": q_linear_conv,
    "QLinearMatMul": q_linear_matmul,
    "QuantizeLinear": quantize_linear,
}
