"""Convolutions and transposed convolutions."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.windows import AUTO_PADS, Window, flat, paddings, window_of
from exporters.onnx_twin.tracing import call, deferred, fixed_sizes

CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv(node: NodeView, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    window = window_of(node, _kernel(node, weight))
    groups = node.attribute("group", 1)
    padding = window.symmetric
    if padding is None or min(padding) < 0:
        x = _pad_window(x, window)
        padding = [0] * len(window.kernel)
    convolve = CONVOLUTIONS[len(window.kernel)]
    return call(convolve, x, weight, bias, window.strides, padding, window.dilations, groups)  # type: ignore[no-any-return]


def _kernel(node: NodeView, weight: Tensor) -> list[int]:
    """The spatial sizes of the weight."""
    sizes = (fixed_sizes(weight) or [])[2:]
    if not node.has("kernel_shape") and (not sizes or None in sizes):
        node.refuse("the size of its kernel is not known")
    return node.attribute("kernel_shape", [size or 0 for size in sizes])


@deferred
def _pad_window(x: Tensor, window: Window) -> Tensor:
    return F.pad(x, flat(paddings(window, list(x.shape[2:]))))


def conv_transpose(node: NodeView, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = _kernel(node, weight)
    rank = len(kernel)
    auto_pad = node.attribute("auto_pad", "NOTSET")
    strides = node.attribute("strides", [1] * rank)
    dilations = node.attribute("dilations", [1] * rank)
    pads = node.attribute("pads", [0] * 2 * rank)
    extra = node.attribute("output_padding", [0] * rank)
    wanted = node.attribute("output_shape", [0] * rank)[-rank:]
    groups = node.attribute("group", 1)
    if auto_pad not in AUTO_PADS:
        node.refuse(f"attribute 'auto_pad' should be one of {', '.join(AUTO_PADS)}, got '{auto_pad}'")
    if rank not in TRANSPOSED or not len(strides) == len(dilations) == len(extra) == rank or len(pads) != 2 * rank:
        node.refuse(f"expected 1 to 3 axes, each with its entries, got {kernel}, {strides}, {dilations}, {pads}")
    begins, ends = pads[:rank], pads[rank:]
    if auto_pad == "VALID":
        begins = ends = [0] * rank
    if auto_pad.startswith("SAME") or any(wanted):
        uppers = auto_pad == "SAME_UPPER"
        return _fit(x, weight, bias, strides, dilations, extra, wanted, groups, uppers)
    if begins == ends and all(more < max(pair) for more, *pair in zip(extra, strides, dilations, strict=True)):
        transposed = TRANSPOSED[rank]
        return call(transposed, x, weight, bias, strides, begins, extra, groups, dilations)  # type: ignore[no-any-return]
    cuts = [(-begin, more - end) for begin, end, more in zip(begins, ends, extra, strict=True)]
    return _cut(x, weight, bias, strides, dilations, cuts, groups)


@deferred
def _cut(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: list[int],
    dilations: list[int],
    cuts: list[tuple[int, int]],
    groups: int,
) -> Tensor:
    """The whole of a transposed convolution with its ends cut off, or continued where `cuts` are positive."""
    rank = len(strides)
    whole = TRANSPOSED[rank](x, weight, None, strides, 0, 0, groups, dilations)
    whole = F.pad(whole, flat(cuts))
    return whole if bias is None else whole + bias.reshape(-1, *[1] * rank)


@deferred
def _fit(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: list[int],
    dilations: list[int],
    extra: list[int],
    wanted: list[int],
    groups: int,
    upper: bool,
) -> Tensor:
    """Padded so that the result has the sizes `wanted`, or `strides` times its own where these are 0."""
    cuts = []
    sizes = zip(x.shape[2:], weight.shape[2:], strides, dilations, extra, wanted, strict=True)
    for size, taps, stride, dilation, more, target in sizes:
        total = stride * (size - 1) + more + dilation * (taps - 1) + 1 - (target or size * stride)
        total = total if target else max(0, total)  # a small kernel's gaps at the end stay away, as in ONNX Runtime
        begin = max(0, total // 2 if upper else total - total // 2)
        cuts.append((-begin, more - (total - begin)))
    return _cut(x, weight, bias, strides, dilations, cuts, groups)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
}
