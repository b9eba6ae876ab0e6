"""Windows that take a maximum or a mean."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.windows import Window, flat, paddings, window_of
from exporters.onnx_twin.tracing import call, deferred

MAX_POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def pool_window(node: NodeView) -> Window:
    """The window of a node."""
    window = window_of(node, node.required("kernel_shape", list))
    if node.attribute("auto_pad", "NOTSET").startswith("SAME") and max(window.dilations) > 1:
        node.refuse("auto_pad is SAME and there are dilations, which ONNX Runtime does not pad as ONNX says")
    return window


def max_pool(node: NodeView, x: Tensor) -> Any:
    columns = bool(node.attribute("storage_order", 0))
    window = pool_window(node)
    padding = window.symmetric
    if len(node.outputs) > 1:
        found = _max_pool_with_positions(x, window, columns)
        return found[0], found[1]
    if padding is None or not _torch_can(padding, window.kernel):
        return _padded_max_pool(x, window)
    pool = MAX_POOLS[len(window.kernel)]
    return call(pool, x, window.kernel, window.strides, padding, window.dilations, ceil_mode=window.ceil)


@deferred
def _padded_max_pool(x: Tensor, w: Window) -> Tensor:
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    x = F.pad(x, flat(paddings(w, list(x.shape[2:]))), value=lowest)
    return MAX_POOLS[len(w.kernel)](x, w.kernel, w.strides, 0, w.dilations)  # type: ignore[no-any-return]


@deferred
def _max_pool_with_positions(x: Tensor, w: Window, columns: bool) -> tuple[Tensor, Tensor]:
    """Maxima and where they are in `x`, counted over the whole tensor; with `columns`, an image's columns first."""
    sizes = list(x.shape[2:])
    pairs = paddings(w, sizes)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = F.pad(x, flat(pairs), value=lowest)
    values, found = MAX_POOLS[len(w.kernel)](padded, w.kernel, w.strides, 0, w.dilations, return_indices=True)
    planes = torch.arange(x.shape[:2].numel(), device=x.device).reshape(*x.shape[:2], *[1] * len(sizes))
    position, factors = planes * math.prod(sizes), [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    if columns:
        factors = [math.prod(sizes[:axis]) for axis in range(len(sizes))]
    for axis in reversed(range(len(sizes))):
        length = padded.shape[2 + axis]
        position = position + (found % length - pairs[axis][0]) * factors[axis]
        found = found // length
    return values, position


def average_pool(node: NodeView, x: Tensor) -> Tensor:
    window = pool_window(node)
    whole = bool(node.attribute("count_include_pad", 0))
    padding = window.symmetric
    simple = not window.ceil and max(window.dilations) == 1
    if padding is None or not simple or not _torch_can(padding, window.kernel):
        return _padded_average_pool(x, window, whole)
    pool = AVERAGE_POOLS[len(window.kernel)]
    return call(pool, x, window.kernel, window.strides, padding, False, whole)  # type: ignore[no-any-return]


@deferred
def _padded_average_pool(x: Tensor, w: Window, whole: bool) -> Tensor:
    """A window's sum divided by how many entries count: pixels, and with `whole` the declared padding too."""
    sizes = list(x.shape[2:])
    pairs = paddings(w, sizes)
    counted = torch.ones(1, 1, *sizes, dtype=x.dtype, device=x.device)
    if whole:
        declared = pairs if w.pads is None else w.pads
        counted = F.pad(counted, flat(declared), value=1)
        # What rounding up adds behind the declared padding never counts.
        rest = [(0, end - declared_end) for (_, end), (_, declared_end) in zip(pairs, declared, strict=True)]
        counted = F.pad(counted, flat(rest))
    else:
        counted = F.pad(counted, flat(pairs))
    return _window_sum(F.pad(x, flat(pairs)), w) / _window_sum(counted, w)


@deferred
def average_of_whole_windows(x: Tensor, w: Window) -> Tensor:
    """A window's sum divided by the size of its kernel, wherever it reaches."""
    return _window_sum(F.pad(x, flat(paddings(w, list(x.shape[2:])))), w) / math.prod(w.kernel)


def _window_sum(x: Tensor, w: Window) -> Tensor:
    """Sums over windows, each channel for itself, `(N, C, ...)`."""
    ones = torch.ones(1, 1, *w.kernel, dtype=x.dtype, device=x.device)
    sums = CONVOLUTIONS[len(w.kernel)](x.flatten(0, 1)[:, None], ones, None, w.strides, 0, w.dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])  # type: ignore[no-any-return]


def lp_pool(node: NodeView, x: Tensor) -> Tensor:
    window = pool_window(node)
    return _lp_pool(x, window, node.attribute("p", 2))


@deferred
def _lp_pool(x: Tensor, w: Window, p: int) -> Tensor:
    powers = F.pad(x.abs().pow(p), flat(paddings(w, list(x.shape[2:]))))
    return _window_sum(powers, w).pow(1 / p)


def _torch_can(padding: list[int], kernel: list[int]) -> bool:
    return all(0 <= pad <= size // 2 for pad, size in zip(padding, kernel, strict=True))


@deferred
def _global_average(x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@deferred
def _global_maximum(x: Tensor) -> Tensor:
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


@deferred
def _global_norm(x: Tensor, p: int) -> Tensor:
    return torch.linalg.vector_norm(x, p, tuple(range(2, x.dim())), keepdim=True)  # type: ignore[no-any-return]


OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": lambda node, x: _global_average(x),
    "GlobalLpPool": lambda node, x: _global_norm(x, node.attribute("p", 2)),
    "GlobalMaxPool": lambda node, x: _global_maximum(x),
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
