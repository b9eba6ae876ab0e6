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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgad_tk.ascent.rounding import rounded
from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.products import conv
from exporters.onnx_twin.operators.row import Operator
from exporters.onnx_twin.tracing import call, deferred, example, rank

Number = Tensor | float
"""A scale or an offset: a float where it is one number and known, so that nothing is looked up when the twin runs."""


class Scale(NamedTuple):
    """What the integers of an output stand for."""

    scale: Tensor
    zero_point: Tensor | None = None


class Quantised(NamedTuple):
    """Integers, which stand for the real numbers `(integers - zero_point) * scale`."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None


def between_integers(operator: Callable[..., Tensor]) -> Operator:
    """An operator whose inputs are some integers, each with a scale and a zero point, and the Scale of its output."""

    def run(node: NodeView, *inputs: Any) -> Tensor:
        end = len(inputs) // 3 * 3
        numbers = (Quantised(*inputs[start : start + 3]) for start in range(0, end, 3))
        return operator(node, *numbers, Scale(*inputs[end:]))

    return run


@deferred
def saturate(x: Tensor, factor: Number, offset: Number, low: int, high: int) -> Tensor:
    """`x * factor` as integers: rounded, moved by `offset` and clipped to [low, high]."""
    scaled = x if isinstance(factor, float) and factor == 1 else x * factor
    if isinstance(offset, Tensor):
        return rounded(scaled.clamp(low - offset, high - offset)) + offset
    whole = rounded(F.hardtanh(scaled, low - offset, high - offset, inplace=scaled is not x))
    return whole + offset if offset else whole


def as_float(x: Tensor) -> Tensor:
    """In single precision; doubles stay what they are."""
    found = example(x)
    ready = found is not None and found.dtype in (torch.float32, torch.float64)
    return x if ready else call(torch.Tensor.to, x, torch.float32)


def spread(node: NodeView, values: Tensor, like: Tensor, axis: int) -> Number:
    """`values`, a single one or one per entry along `axis`, in a shape that broadcasts with `like`."""
    values, dimensions = as_float(values), rank(like)
    found = example(values)
    if isinstance(values, Tensor) and values.numel() == 1:
        return float(values.item())
    if found is not None and (found.numel() == 1 or found.dim() > 1):
        return values
    if dimensions is None:
        node.refuse("it has a scale per entry, of a tensor whose number of axes is not known")
    return call(torch.reshape, values, [-1 if index == axis % dimensions else 1 for index in range(dimensions)])


def centred(node: NodeView, x: Tensor, zero_point: Tensor | None, axis: int = 0) -> Tensor:
    """`x` less its zero point."""
    offset = offset_of(node, zero_point, x, axis)
    return as_float(x) if isinstance(offset, float) and offset == 0 else call(torch.sub, as_float(x), offset)


def offset_of(node: NodeView, zero_point: Tensor | None, like: Tensor, axis: int = 0) -> Number:
    """The zero point in a form that broadcasts with `like`; 0 where there is none, or all are 0."""
    if zero_point is None or (isinstance(zero_point, Tensor) and not as_float(zero_point).any()):
        return 0.0
    return spread(node, zero_point, like, axis)


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
    dtype: torch.dtype | None = None,
    axis: int = 0,
) -> Tensor:
    """`x * factor`, in steps from the zero point, as integers of type `dtype`, by default the zero point's."""
    limits = torch.iinfo(dtype or type_of(node, zero_point))
    return saturate(x, factor, offset_of(node, zero_point, x, axis), limits.min, limits.max)


def ratio(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """`a * b / c` of scales, rounded to float32 at each step as ONNX Runtime does it."""
    product = call(torch.mul, as_float(a), as_float(b))
    return product if c is None else call(torch.div, product, as_float(c))


def _per_entry(node: NodeView, x: Tensor, axis: int, scale: Tensor, zero_point: Tensor | None) -> Scale:
    """A scale and zero point per block of entries along `axis`, if the node has blocks, as one per entry."""
    block = node.attribute("block_size", 0)
    if not block:
        return Scale(scale, zero_point)
    return Scale(*(None if each is None else _repeat(each, x, axis, block) for each in (scale, zero_point)))  # type: ignore[arg-type]


@deferred
def _repeat(values: Tensor, like: Tensor, axis: int, block: int) -> Tensor:
    return values.repeat_interleave(block, axis).narrow(axis, 0, like.shape[axis])


def quantize_linear(node: NodeView, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    node.ignore("saturate")  # it is about 8-bit floats, which are refused
    axis, dtype = node.attribute("axis", 1), node.dtype("output_dtype")
    if node.attribute("precision", 0) not in (0, 1):
        node.refuse("attribute 'precision' should be float")
    if zero_point is not None:
        dtype = type_of(node, zero_point)
    scale, zero_point = _per_entry(node, x, axis, scale, zero_point)
    steps = call(torch.div, as_float(x), spread(node, scale, x, axis))
    return stored(node, steps, 1.0, zero_point, dtype or torch.uint8, axis)


def dequantize_linear(node: NodeView, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    axis, found = node.attribute("axis", 1), example(scale)
    dtype = node.dtype("output_dtype") or (torch.float32 if found is None else found.dtype)
    scale, zero_point = _per_entry(node, x, axis, scale, zero_point)
    product = call(torch.mul, centred(node, x, zero_point, axis), spread(node, scale, x, axis))
    return product if dtype is torch.float32 else call(Tensor.to, product, dtype)


@deferred
def _dynamic(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`x` as integers in 0..255, their scale and their zero point, from the range of the whole of `x` and 0.

    Scale and zero point count as constants backwards. They depend on every image of a batch, here as in the runtime.
    """
    with torch.no_grad():
        low, high = (end.clamp(least, most) for end, least, most in zip(x.aminmax(), (None, 0), (0, None), strict=True))
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero_point = (-low / scale).clamp(0, 255).round()
    integers = rounded(x / scale) + zero_point
    # Only rounding leaves the range, by one step: nothing saturates, and the gradient passes.
    integers = integers + (integers.clamp(0, 255) - integers).detach()
    return integers, scale, zero_point.to(torch.uint8)


def dynamic_quantize_linear(node: NodeView, x: Tensor) -> Quantised:
    found = _dynamic(x)
    return Quantised(found[0], found[1], found[2])


def conv_integer(
    node: NodeView, x: Tensor, w: Tensor, x_zero_point: Tensor | None = None, w_zero_point: Tensor | None = None
) -> Tensor:
    return conv(node, centred(node, x, x_zero_point), centred(node, w, w_zero_point))


def q_linear_conv(node: NodeView, *inputs: Any) -> Tensor:
    """Images and weights, each with scale and zero point, those of the output, and perhaps a bias."""
    x, w, to = Quantised(*inputs[:3]), Quantised(*inputs[3:6]), Scale(*inputs[6:8])
    bias = as_float(inputs[8]) if inputs[8:] and inputs[8] is not None else None
    sums = conv(node, centred(node, x.integers, x.zero_point), centred(node, w.integers, w.zero_point), bias)
    return stored(node, sums, spread(node, ratio(x.scale, w.scale, to.scale), w.integers, 1), to.zero_point)


def matmul_integer(
    node: NodeView, a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """Zero points are one per tensor, one per row of `a` or one per column of `b`."""
    return call(torch.matmul, centred(node, a, a_zero_point, -2), centred(node, b, b_zero_point, -1))


def _q_linear_matmul(node: NodeView, a: Quantised, b: Quantised, to: Scale) -> Tensor:
    sums = matmul_integer(node, a.integers, b.integers, a.zero_point, b.zero_point)
    rows = example(a.scale)
    if rows is None or rows.numel() != 1:
        node.refuse("input 'a_scale' should be one number")
    return stored(node, sums, spread(node, ratio(a.scale, b.scale, to.scale), sums, -1), to.zero_point)


OPERATORS: dict[str, Operator] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
    "QLinearConv": q_linear_conv,
    "QLinearMatMul": between_integers(_q_linear_matmul),
    "QuantizeLinear": quantize_linear,
}
