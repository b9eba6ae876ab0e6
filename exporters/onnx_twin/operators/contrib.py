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
    as_float,
    centred,
    dequantize_linear,
    dynamic,
    offset_of,
    q_linear_conv,
    quantize_linear,
    ratio,
    saturate,
    spread,
    stored,
    type_of,
)
from exporters.onnx_twin.tracing import call, deferred, example

Operator = Callable[..., Any]


def _either_layout(operator: Operator) -> Operator:
    """Of images `(N, C, ...)`, or `(N, ..., C)` where the attribute says so."""

    def run(node: NodeView, x: Tensor, *others: Tensor | None) -> Tensor:
        if not node.attribute("channels_last", 0):
            return operator(node, x, *others)  # type: ignore[no-any-return]
        return _channels_last(operator)(node, x, *others)  # type: ignore[no-any-return]

    return run


def _channels_last(operator: Operator) -> Operator:
    def run(node: NodeView, x: Tensor, *others: Tensor | None) -> Tensor:
        return call(torch.movedim, operator(node, call(torch.movedim, x, -1, 1), *others), 1, -1)

    return run


def _real(node: NodeView, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """The real numbers that `x` stands for."""
    return call(torch.mul, centred(node, x, zero_point), spread(node, scale, x, 0))


def _stored(node: NodeView, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """`x` quantised."""
    steps = call(torch.div, x, spread(node, scale, x, 0))
    return stored(node, steps, 1.0, zero_point, type_of(node, zero_point))


def _add(
    node: NodeView,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
) -> Tensor:
    """`a * a_scale / scale + b * b_scale / scale + constant`, with the roundings of the kernel's fused arithmetic."""
    limits = torch.iinfo(type_of(node, zero))
    a_ratio, b_ratio = (
        node.constant(part, "scale").float().reshape(()) / node.constant(scale, "scale").reshape(())
        for part in (a_scale, b_scale)
    )
    a_offset, b_offset, offset = (
        torch.zeros(()) if point is None else node.constant(point, "zero_point").float().reshape(())
        for point in (a_zero, b_zero, zero)
    )
    constant = offset - (a_ratio.double() * a_offset + (b_ratio * b_offset).double()).float()
    # torch's addition with a factor is a fused one as well.
    steps = call(torch.add, constant, as_float(b), alpha=b_ratio.item())
    steps = call(torch.add, steps, as_float(a), alpha=a_ratio.item())
    return saturate(steps, 1.0, 0.0, limits.min, limits.max)


def _multiply(
    node: NodeView,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    scale: Tensor,
    zero: Tensor | None,
) -> Tensor:
    product = call(torch.mul, centred(node, a, a_zero), centred(node, b, b_zero))
    steps = call(torch.mul, product, spread(node, ratio(a_scale, b_scale, scale), product, 0))
    return _moved_and_stored(node, steps, zero)


def _moved_and_stored(node: NodeView, steps: Tensor, zero: Tensor | None) -> Tensor:
    """With the zero point added before rounding: a half then goes to the even result, not to the even distance."""
    limits, offset = torch.iinfo(type_of(node, zero)), offset_of(node, zero, steps)
    moved = steps if isinstance(offset, float) and offset == 0 else call(torch.add, steps, offset)
    return saturate(moved, 1.0, 0.0, limits.min, limits.max)


def _average_pool(
    node: NodeView, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor | None = None
) -> Tensor:
    real = _real(node, x, x_scale, x_zero)
    if node.attribute("count_include_pad", 0) and node.attribute("ceil_mode", 0):
        # Unlike the float kernel this one also counts what rounding up adds behind the padding.
        means = average_of_whole_windows(real, pool_window(node))
    else:
        means = POOLS["AveragePool"](node, real)
    return _moved_and_stored(node, call(torch.div, means, spread(node, scale, means, 0)), zero)


def _global_average_pool(
    node: NodeView, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor | None
) -> Tensor:
    steps = _image_steps(centred(node, x, x_zero), as_float(x_scale), as_float(scale))
    return stored(node, steps, 1.0, zero, type_of(node, zero))


@deferred
def _image_steps(x: Tensor, x_scale: Tensor, scale: Tensor) -> Tensor:
    """Means over an image: the sum is exact, and multiplied by one number."""
    axes = list(range(2, x.dim()))
    return x.sum(axes, keepdim=True) * (x_scale / (scale * x.shape[2:].numel()))


def _unary(function: Callable[[NodeView, Tensor], Tensor]) -> Operator:
    """A function of real numbers, between quantised ones."""

    def run(
        node: NodeView, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor | None = None
    ) -> Tensor:
        return _stored(node, function(node, _real(node, x, x_scale, x_zero)), scale, zero)

    return run


def _softmax(
    node: NodeView, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor | None = None
) -> Tensor:
    """The kernel takes a whole number of steps from 0 to 1."""
    axis, opset, found = node.attribute("axis", -1), node.required("opset", int), example(x)
    if opset < 13 and (found is None or axis % found.dim() != found.dim() - 1):
        node.refuse("attribute 'axis' should be the last one")
    probabilities = call(F.softmax, _real(node, x, x_scale, x_zero), dim=axis)
    levels = (1 / as_float(node.constant(scale, "Y_scale"))).floor().item()
    return stored(node, probabilities, levels, zero, type_of(node, zero))


def _moved(
    node: NodeView, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor | None
) -> Tensor:
    """`x` in another quantisation."""
    same = (x_scale, scale), (x_zero, zero)
    if all(isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b) for a, b in same):
        return as_float(x)
    return _stored(node, _real(node, x, x_scale, x_zero), scale, zero)


def _concat(node: NodeView, scale: Tensor, zero: Tensor, *parts: Tensor) -> Tensor:
    triples = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return call(torch.cat, [_moved(node, *part, scale, zero) for part in triples], node.required("axis", int))


def _where(node: NodeView, condition: Tensor, *parts: Tensor) -> Tensor:
    a, b = (_moved(node, *parts[start : start + 3], *parts[6:]) for start in (0, 3))
    return call(torch.Tensor.where, a, condition, b)


def _gemm(
    node: NodeView,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    c: Tensor | None = None,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
) -> Tensor:
    """In floats where there is no scale for the result."""
    columns_first = node.attribute("transB", 0)
    a, b = centred(node, a, a_zero), centred(node, b, b_zero, 0 if columns_first else 1)
    if node.attribute("transA", 0):
        a = call(torch.t, a)
    sums = call(F.linear, a, b if columns_first else call(torch.t, b))
    if c is not None:
        sums = call(torch.add, sums, as_float(c))
    step = spread(
        node, ratio(call(torch.mul, as_float(a_scale), node.attribute("alpha", 1.0)), b_scale, scale), sums, 1
    )
    return call(torch.mul, sums, step) if scale is None else stored(node, sums, step, zero, type_of(node, zero))


def _product(
    node: NodeView,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    sums = call(torch.matmul, centred(node, a, a_zero), centred(node, b, b_zero, -1))
    result = call(torch.mul, sums, spread(node, ratio(a_scale, b_scale), sums, -1))
    return result if bias is None else call(torch.add, result, bias)


def _dynamic_product(
    node: NodeView, a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    quantised = dynamic(a)
    return _product(node, quantised[0], b, quantised[1], b_scale, quantised[2], b_zero, bias)


QUANTISED: dict[str, Operator] = {
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeMatMul": _dynamic_product,
    "MatMulIntegerToFloat": _product,
    "NhwcMaxPool": _channels_last(POOLS["MaxPool"]),
    "QGemm": _gemm,
    "QLinearAdd": _add,
    "QLinearAveragePool": _either_layout(_average_pool),
    "QLinearConcat": _concat,
    "QLinearConv": _either_layout(q_linear_conv),
    "QLinearGlobalAveragePool": _either_layout(_global_average_pool),
    "QLinearLeakyRelu": _unary(lambda node, x: call(F.leaky_relu, x, node.attribute("alpha", 0.01))),
    "QLinearMul": _multiply,
    "QLinearSigmoid": _unary(lambda node, x: call(torch.sigmoid, x)),
    "QLinearSoftmax": _softmax,
    "QLinearWhere": _where,
    "QuantizeLinear": quantize_linear,
}

OPERATORS: dict[str, Operator] = {f"com.microsoft.{name}": operator for name, operator in QUANTISED.items()}
