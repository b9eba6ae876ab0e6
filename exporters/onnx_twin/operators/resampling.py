"""Images at another resolution, as ONNX Runtime computes it: Resize, Upsample and sampling on a grid."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator
from exporters.onnx_twin.operators.shapes import Amounts
from exporters.onnx_twin.sizes import as_numbers
from exporters.onnx_twin.tracing import call, deferred, example

HALF_WAY = 1e-6
"""What ONNX Runtime takes for half way between two pixels."""


class Style(NamedTuple):
    """How a Resize samples; the names are ONNX's attributes, shortened."""

    mode: str
    coordinates: str
    nearest: str
    policy: str = "stretch"
    cubic_a: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    extrapolation: float = 0.0


class Axis(NamedTuple):
    """One axis that is resized."""

    number: int
    size: int
    target: int
    scale: float
    begin: float = 0.0
    end: float = 1.0


@deferred
def resampled(
    x: Tensor,
    roi: list[float] | None,
    scales: list[float] | None,
    sizes: list[int] | None,
    axes: list[int] | None,
    style: Style,
) -> Tensor:
    """`x` at another resolution.

    Args:
        x: any axes; it may hold integers where nothing is interpolated.
        roi: for crops, the beginnings and then the ends of `axes`, as parts of them.
        scales: the factor of each of `axes`.
        sizes: in place of `scales`, the sizes of `axes` in the result.
        axes: which are resized; all if None.
    """
    chosen = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    count, old = len(chosen), [x.shape[axis] for axis in chosen]
    begins, ends = (roi[:count], roi[count:]) if roi else ([0.0] * count, [1.0] * count)
    if sizes is None:
        scales = scales or [1.0] * count
        new = [_scaled(size, scale) for size, scale in zip(old, scales, strict=True)]
    else:
        new, scales = list(sizes), [target / size for target, size in zip(sizes, old, strict=True)]
        if style.policy != "stretch":
            ratio = min(scales) if style.policy == "not_larger" else max(scales)
            new, scales = [math.floor(ratio * size + 0.5) for size in old], [ratio] * count
    plan = [Axis(*each) for each in zip(chosen, old, new, scales, begins, ends, strict=True)]
    resized = [
        axis for axis in plan if axis.target != axis.size or axis.scale != 1
    ]  # ONNX Runtime does not crop the others
    for axis in resized:
        x = _nearest(x, axis, style) if style.mode == "nearest" else _filtered(x, axis, style)
    return x


def _scaled(size: int, scale: float) -> int:
    """In single precision, as ONNX Runtime: 0.7 is a little less, and seven tenths of 10 are 7 nevertheless."""
    return size * int(scale) if scale == int(scale) else int(np.float32(size) * np.float32(scale))


def _origins(axis: Axis, style: Style) -> Tensor:
    """Where in the input each position of the output lies, `(target,)`; in single precision, as runtimes have it.

    Positions and weights are few: they are computed on the CPU, wherever the images are.
    """
    x, scale = torch.arange(axis.target, dtype=torch.float32), torch.tensor(axis.scale, dtype=torch.float32)
    last, many = axis.size - 1, axis.target > 1
    if style.coordinates == "align_corners":
        return x * last / (axis.target - 1) if many else torch.zeros_like(x)
    if style.coordinates == "asymmetric":
        return x / scale
    if style.coordinates == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if style.coordinates == "tf_crop_and_resize":
        if not many:
            return torch.full_like(x, (axis.begin + axis.end) * last / 2)
        return axis.begin * last + x * (axis.end - axis.begin) * last / (axis.target - 1)
    if style.coordinates == "pytorch_half_pixel" and not many:
        return torch.zeros_like(x)
    origins = (x + 0.5) / scale
    if style.coordinates == "half_pixel_symmetric":  # the centre stays the centre where the scale does not fit
        origins = axis.size / 2 * (1 - axis.target / (scale * axis.size)) + origins
    return origins - 0.5


def _nearest(x: Tensor, axis: Axis, style: Style) -> Tensor:
    origins = _origins(axis, style)
    below = torch.floor(origins)
    if style.nearest == "round_prefer_floor":
        index = below + (origins - below > 0.5 + HALF_WAY)
    elif style.nearest == "round_prefer_ceil":
        index = below + (origins - below >= 0.5 - HALF_WAY)
    elif style.nearest == "ceil" or (style.nearest == "simple" and axis.scale < 1):
        index = torch.ceil(origins)
    else:
        index = below
    taken = x.index_select(axis.number, index.long().clamp(0, axis.size - 1).to(x.device))
    return _extrapolated(taken, origins, axis, style)


def _filtered(x: Tensor, axis: Axis, style: Style) -> Tensor:
    """Weighted sums of the neighbours; a filter against aliasing is as much wider as the image becomes smaller."""
    origins = _origins(axis, style)
    stretch = min(axis.scale, 1.0) if style.antialias else 1.0
    half = math.ceil((1 if style.mode == "linear" else 2) / stretch)
    taps = torch.arange(1 - half, half + 1)
    positions = torch.floor(origins)[:, None] + taps  # (target, taps)
    distance = (positions - origins[:, None]) * stretch
    weights = (1 - distance.abs()).clamp(min=0) if style.mode == "linear" else _cubic(distance, style.cubic_a)
    if style.exclude_outside:
        weights = weights * ((positions >= 0) & (positions < axis.size))
    if style.exclude_outside or style.antialias:
        weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(axis.target, axis.size).scatter_add(1, positions.long().clamp(0, axis.size - 1), weights)
    resized = torch.matmul(x.movedim(axis.number, -1), matrix.t().to(x)).movedim(-1, axis.number)
    return _extrapolated(resized, origins, axis, style)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel (https://ieeexplore.ieee.org/document/1163711, equation 4)."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _extrapolated(x: Tensor, origins: Tensor, axis: Axis, style: Style) -> Tensor:
    """A crop that reaches over the edge has a fixed value there."""
    if style.coordinates != "tf_crop_and_resize":
        return x
    outside = (origins < 0) | (origins > axis.size - 1)
    return x.masked_fill(outside.reshape(-1, *[1] * (x.dim() - 1 - axis.number)).to(x.device), style.extrapolation)


COORDINATES = (
    *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"),
    *("tf_half_pixel_for_nn", "tf_crop_and_resize"),
)


def resize(
    node: NodeView, x: Tensor, roi: Amounts | None = None, scales: Amounts | None = None, sizes: Amounts | None = None
) -> Tensor:
    if node.opset < 11:
        return upsample(node, x, roi)  # the second input is the scales
    style = Style(
        _mode(node),
        node.choice("coordinate_transformation_mode", *COORDINATES),
        node.choice("nearest_mode", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
        node.choice("keep_aspect_ratio_policy", "stretch", "not_larger", "not_smaller"),
        node.attribute("cubic_coeff_a", -0.75),
        node.attribute("antialias", False),
        node.attribute("exclude_outside", False),
        node.attribute("extrapolation_value", 0.0),
    )
    found = example(x)
    if style.mode != "nearest" and found is not None and not found.is_floating_point():
        node.refuse(f"mode '{style.mode}' of integers, whose rounding runtimes do not agree on")
    region = None if style.coordinates != "tf_crop_and_resize" else _numbers(roi)
    return resampled(x, region, _numbers(scales), _numbers(sizes), node.attribute("axes", None), style)


def upsample(node: NodeView, x: Tensor, scales: Amounts | None = None) -> Tensor:
    factors = node.required("scales", list) if scales is None else as_numbers(scales)
    return resampled(x, None, factors, None, None, Style(_mode(node), "asymmetric", "simple"))


def _mode(node: NodeView) -> str:
    return node.choice("mode", "nearest", "linear", "bilinear", "cubic").replace("bilinear", "linear")


def _numbers(value: Amounts | None) -> Any:
    """A list of numbers; an empty tensor is as good as none."""
    return None if value is None or (isinstance(value, Tensor) and value.numel() == 0) else as_numbers(value)


def grid_sample(node: NodeView, x: Tensor, grid: Tensor) -> Tensor:
    mode = node.choice("mode", "linear", "bilinear", "nearest", "cubic", "bicubic")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)  # before opset 20 they had torch's names
    padding = node.choice("padding_mode", "zeros", "border", "reflection")
    return call(F.grid_sample, x, grid, mode, padding, node.attribute("align_corners", False))


def affine_grid(node: NodeView, theta: Tensor, size: Amounts) -> Tensor:
    return call(F.affine_grid, theta, as_numbers(size), node.attribute("align_corners", False))


OPERATORS: dict[str, Operator] = {
    "AffineGrid": affine_grid,
    "GridSample": grid_sample,
    "Resize": resize,
    "Upsample": upsample,
}
