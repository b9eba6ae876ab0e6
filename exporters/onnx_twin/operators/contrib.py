"""ONNX Runtime's own quantised operators (domain com.microsoft), in the order of operations of its kernels on CPUs.

What `quantised` says about integers and gradients holds here too.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.pooling import OPERATORS as POOLS
from exporters.onnx_twin.operators.pooling import average_of_whole_windows, pool_window
from exporters.onnx_twin.operators.quantised import (
    Quantised,
    Scale,
    as_float,
    between_integers,
    centred,
    dequantize_linear,
    dynamic_quantize_linear,
    offset_of,
    q_linear_conv,
    quantize_linear,
    ratio,
    saturate,
    spread,
    stored,
    type_of,
)
from exporters.onnx_twin.operators.row import Operator
from exporters.onnx_twin.tracing import call, deferred, example


def _channels_last(operator: Operator) -> Operator:
    """`operator` on images `(N, ..., C)`."""
    return lambda node, x, *others: call(torch.movedim, operator(node, call(torch.movedim, x, -1, 1), *others), 1, -1)


def _either_layout(operator: Operator) -> Operator:
    """`operator` on images `(N, C, ...)`, or `(N, ..., C)` where the attribute says so."""
    last = _channels_last(operator)
    return lambda node, *inputs: (last if node.attribute("channels_last", False) else operator)(node, *inputs)


def _real(node: NodeView, x: Quantised) -> Tensor:
    """The real numbers that `x` stands for."""
    return call(torch.mul, centred(node, x.integers, x.zero_point), spread(node, x.scale, x.integers, 0))


def _quantised(node: NodeView, x: Tensor, to: Scale) -> Tensor:
    """Real numbers as integers."""
    return stored(node, call(torch.div, x, spread(node, to.scale, x, 0)), 1.0, to.zero_point)


def _add(node: NodeView, a: Quantised, b: Quantised, to: Scale) -> Tensor:
    """`a * a_scale / scale + b * b_scale / scale + constant`, with the roundings of the kernel's fused arithmetic."""
    limits = torch.iinfo(type_of(node, to.zero_point))
    a_ratio, b_ratio = (
        node.constant(x.scale, "scale").float().reshape(()) / node.constant(to.scale, "scale").reshape(())
        for x in (a, b)
    )
    a_offset, b_offset, offset = (
        torch.zeros(()) if x.zero_point is None else node.constant(x.zero_point, "zero_point").float().reshape(())
        for x in (a, b, to)
    )
    constant = offset - (a_ratio.double() * a_offset + (b_ratio * b_offset).double()).float()
    # torch's addition with a factor is a fused one as well.
    steps = call(torch.add, constant, as_float(b.integers), alpha=b_ratio.item())
    steps = call(torch.add, steps, as_float(a.integers), alpha=a_ratio.item())
    return saturate(steps, 1.0, 0.0, limits.min, limits.max)


def _multiply(node: NodeView, a: Quantised, b: Quantised, to: Scale) -> Tensor:
    product = call(torch.mul, *(centred(node, x.integers, x.zero_point) for x in (a, b)))
    steps = call(torch.mul, product, spread(node, ratio(a.scale, b.scale, to.scale), product, 0))
    return _moved_and_stored(node, steps, to.zero_point)


def _moved_and_stored(node: NodeView, steps: Tensor, zero: Tensor | None) -> Tensor:
    """With the zero point added before rounding: a half then goes to the even result, not to the even distance."""
    limits, offset = torch.iinfo(type_of(node, zero)), offset_of(node, zero, steps)
    moved = steps if isinstance(offset, float) and offset == 0 else call(torch.add, steps, offset)
    return saturate(moved, 1.0, 0.0, limits.min, limits.max)


def _average_pool(node: NodeView, x: Quantised, to: Scale) -> Tensor:
    real = _real(node, x)
    if node.attribute("count_include_pad", False) and node.attribute("ceil_mode", False):
        # Unlike the float kernel this one also counts what rounding up adds behind the padding.
        means = average_of_whole_windows(real, pool_window(node))
    else:
        means = POOLS["AveragePool"](node, real)
    return _moved_and_stored(node, call(torch.div, means, spread(node, to.scale, means, 0)), to.zero_point)


def _global_average_pool(node: NodeView, x: Quantised, to: Scale) -> Tensor:
    steps = _image_steps(centred(node, x.integers, x.zero_point), as_float(x.scale), as_float(to.scale))
    return stored(node, steps, 1.0, to.zero_point)


@deferred
def _image_steps(x: Tensor, x_scale: Tensor, scale: Tensor) -> Tensor:
    """Means over an image: the sum is exact, and multiplied by one number."""
    axes = list(range(2, x.dim()))
    return x.sum(axes, keepdim=True) * (x_scale / (scale * x.shape[2:].numel()))


def _unary(function: Callable[[NodeView, Tensor], Tensor]) -> Operator:
    """A function of real numbers, between integers."""
    return between_integers(lambda node, x, to: _quantised(node, function(node, _real(node, x)), to))


def _softmax(node: NodeView, x: Quantised, to: Scale) -> Tensor:
    """The kernel takes a whole number of steps from 0 to 1."""
    axis, opset, found = node.attribute("axis", -1), node.required("opset", int), example(x.integers)
    if opset < 13 and (found is None or axis % found.dim() != found.dim() - 1):
        node.refuse("attribute 'axis' should be the last one")
    probabilities = call(F.softmax, _real(node, x), dim=axis)
    levels = (1 / as_float(node.constant(to.scale, "Y_scale"))).floor().item()
    return stored(node, probabilities, levels, to.zero_point)


def _moved(node: NodeView, x: Quantised, to: Scale) -> Tensor:
    """`x` in another quantisation."""
    pairs = zip(x[1:], to, strict=True)
    if all(isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b) for a, b in pairs):
        return as_float(x.integers)
    return _quantised(node, _real(node, x), to)


def _concat(node: NodeView, scale: Tensor, zero: Tensor, *parts: Any) -> Tensor:
    numbers = [Quantised(*parts[start : start + 3]) for start in range(0, len(parts), 3)]
    return call(torch.cat, [_moved(node, x, Scale(scale, zero)) for x in numbers], node.required("axis", int))


def _where(node: NodeView, condition: Tensor, *parts: Any) -> Tensor:
    a, b = (_moved(node, Quantised(*parts[start : start + 3]), Scale(*parts[6:])) for start in (0, 3))
    return call(Tensor.where, a, condition, b)


def _gemm(node: NodeView, *inputs: Any) -> Tensor:
    """Two matrices, each with scale and zero point, a bias, and a scale and zero point of the output.

    Without these the output has floats.
    """
    left, right, (c, scale, zero) = Quantised(*inputs[:3]), Quantised(*inputs[3:6]), (*inputs[6:], None, None, None)[:3]
    columns_first = node.attribute("transB", False)
    a = centred(node, left.integers, left.zero_point)
    b = centred(node, right.integers, right.zero_point, 0 if columns_first else 1)
    if node.attribute("transA", False):
        a = call(torch.t, a)
    sums = call(F.linear, a, b if columns_first else call(torch.t, b))
    if c is not None:
        sums = call(torch.add, sums, as_float(c))
    factor = call(torch.mul, as_float(left.scale), node.attribute("alpha", 1.0))
    step = spread(node, ratio(factor, right.scale, scale), sums, 1)
    return call(torch.mul, sums, step) if scale is None else stored(node, sums, step, zero)


def _product(node: NodeView, a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *others: Tensor | None) -> Tensor:
    """`others` are the zero points of `a` and `b`, and a bias."""
    a_zero, b_zero, bias = (*others, None, None, None)[:3]
    sums = call(torch.matmul, centred(node, a, a_zero), centred(node, b, b_zero, -1))
    result = call(torch.mul, sums, spread(node, ratio(a_scale, b_scale), sums, -1))
    return result if bias is None else call(torch.add, result, bias)


def _dynamic_product(node: NodeView, x: Tensor, b: Tensor, b_scale: Tensor, *others: Tensor | None) -> Tensor:
    """`others` are the zero point of `b` and a bias."""
    a = dynamic_quantize_linear(node, x)
    return _product(node, a.integers, b, a.scale, b_scale, a.zero_point, *others)


QUANTISED: dict[str, Operator] = {
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeMatMul": _dynamic_product,
    "MatMulIntegerToFloat": _product,
    "NhwcMaxPool": _channels_last(POOLS["MaxPool"]),
    "QGemm": _gemm,
    "QLinearAdd": between_integers(_add),
    "QLinearAveragePool": _either_layout(between_integers(_average_pool)),
    "QLinearConcat": _concat,
    "QLinearConv": _either_layout(q_linear_conv),
    "QLinearGlobalAveragePool": _either_layout(between_integers(_global_average_pool)),
    "QLinearLeakyRelu": _unary(lambda node, x: call(F.leaky_relu, x, node.attribute("alpha", 0.01))),
    "QLinearMul": between_integers(_multiply),
    "QLinearSigmoid": _unary(lambda node, x: call(torch.sigmoid, x)),
    "QLinearSoftmax": between_integers(_softmax),
    "QLinearWhere": _where,
    "QuantizeLinear": quantize_linear,
}

OPERATORS: dict[str, Operator] = {f"com.microsoft.{name}": operator for name, operator in QUANTISED.items()}
