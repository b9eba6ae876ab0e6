"""Windows that take a maximum or a mean."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.reductions import KINDS
from exporters.onnx_twin.operators.row import Operator, row
from exporters.onnx_twin.operators.windows import Window, flat, padded, window_of
from exporters.onnx_twin.tracing import call, deferred

MAX_POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def pool_window(node: NodeView) -> Window:
    """The window of a node."""
    window = window_of(node, node.required("kernel_shape", list))
    if window.pads is None and max(window.dilations) > 1:
        node.refuse("auto_pad is SAME and there are dilations, which ONNX Runtime does not pad as ONNX says")
    return window


def _torch_can(padding: list[int] | None, kernel: list[int]) -> bool:
    """Whether torch pads a pool like this by itself."""
    return padding is not None and all(0 <= pad <= size // 2 for pad, size in zip(padding, kernel, strict=True))


def max_pool(node: NodeView, x: Tensor) -> Any:
    columns = node.attribute("storage_order", False)
    window = pool_window(node)
    padding = window.symmetric
    if len(node.outputs) > 1:
        found = _max_pool_with_positions(x, window, columns)
        return found[0], found[1]
    if not _torch_can(padding, window.kernel):
        x, padding = padded(x, window, lowest=True), [0] * len(window.kernel)
        window = window._replace(ceil=False)
    pool = MAX_POOLS[len(window.kernel)]
    return call(pool, x, window.kernel, window.strides, padding, window.dilations, ceil_mode=window.ceil)


@deferred
def _max_pool_with_positions(x: Tensor, w: Window, columns: bool) -> tuple[Tensor, Tensor]:
    """Maxima and where they are in `x`, counted over the whole tensor; with `columns`, an image's columns first."""
    sizes = list(x.shape[2:])
    continued, pairs = padded(x, w, lowest=True), w.paddings(sizes)
    values, found = MAX_POOLS[len(w.kernel)](continued, w.kernel, w.strides, 0, w.dilations, return_indices=True)
    planes = torch.arange(x.shape[:2].numel(), device=x.device).reshape(*x.shape[:2], *[1] * len(sizes))
    position, factors = planes * math.prod(sizes), [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    if columns:
        factors = [math.prod(sizes[:axis]) for axis in range(len(sizes))]
    for axis in reversed(range(len(sizes))):
        length = continued.shape[2 + axis]
        position = position + (found % length - pairs[axis][0]) * factors[axis]
        found = found // length
    return values, position


def average_pool(node: NodeView, x: Tensor) -> Tensor:
    window = pool_window(node)
    whole = node.attribute("count_include_pad", False)
    padding = window.symmetric
    if window.ceil or max(window.dilations) > 1 or not _torch_can(padding, window.kernel):
        return _padded_average_pool(x, window, whole)
    pool = AVERAGE_POOLS[len(window.kernel)]
    return call(pool, x, window.kernel, window.strides, padding, False, whole)  # type: ignore[no-any-return]


@deferred
def _padded_average_pool(x: Tensor, w: Window, whole: bool) -> Tensor:
    """A window's sum divided by how many entries count: pixels, and with `whole` the declared padding too."""
    pairs = w.paddings(list(x.shape[2:]))
    declared = pairs if w.pads is None else w.pads
    pixels = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    counted = F.pad(pixels, flat(declared), value=float(whole))
    # What rounding up adds behind the declared padding never counts.
    counted = F.pad(counted, flat([(0, end - least) for (_, end), (_, least) in zip(pairs, declared, strict=True)]))
    return _window_sum(padded(x, w), w) / _window_sum(counted, w)


@deferred
def average_of_whole_windows(x: Tensor, w: Window) -> Tensor:
    """A window's sum divided by the size of its kernel, wherever it reaches."""
    return _window_sum(padded(x, w), w) / math.prod(w.kernel)


def _window_sum(x: Tensor, w: Window) -> Tensor:
    """Sums over the windows of each channel, `(N, C, ...)`."""
    for axis, (span, stride, dilation) in enumerate(zip(w.span, w.strides, w.dilations, strict=True), start=2):
        x = x.unfold(axis, span, stride)[..., ::dilation].sum(-1)
    return x


def lp_pool(node: NodeView, x: Tensor) -> Tensor:
    return _lp_pool(x, pool_window(node), node.attribute("p", 2))


@deferred
def _lp_pool(x: Tensor, w: Window, p: int) -> Tensor:
    return _window_sum(padded(x.abs().pow(p), w), w).pow(1 / p)


@deferred
def _global(x: Tensor, kind: str) -> Tensor:
    return KINDS[kind](x, list(range(2, x.dim())), True)


@deferred
def _global_norm(x: Tensor, p: int) -> Tensor:
    return torch.linalg.vector_norm(x, p, tuple(range(2, x.dim())), keepdim=True)  # type: ignore[no-any-return]


OPERATORS: dict[str, Operator] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": row(_global, "mean"),
    "GlobalLpPool": row(_global_norm, p=2),
    "GlobalMaxPool": row(_global, "max"),
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
