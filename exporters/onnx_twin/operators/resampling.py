"""Images at another resolution: Resize, Upsample and sampling on a grid."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.interpolation import Style, resampled
from exporters.onnx_twin.sizes import Sizes, as_numbers, data_of
from exporters.onnx_twin.tracing import call, deferred, example

CHOICES = {
    "mode": ("nearest", "linear", "cubic"),
    "coordinate_transformation_mode": (
        "half_pixel",
        "half_pixel_symmetric",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
        "tf_half_pixel_for_nn",
        "tf_crop_and_resize",
    ),
    "nearest_mode": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
}
GRID_MODES = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "nearest": "nearest",
    "cubic": "bicubic",
    "bicubic": "bicubic",
}


def resize(
    node: NodeView,
    x: Tensor | Sizes,
    roi: Tensor | Sizes | None = None,
    scales: Tensor | Sizes | None = None,
    sizes: Tensor | Sizes | None = None,
) -> Tensor:
    data = data_of(node, x)
    if node.opset < 11:  # the second input is the scales
        return resampled(data, None, _numbers(roi), None, None, Style(_mode(node), "asymmetric", "simple"))
    style = Style(
        _mode(node),
        _choice(node, "coordinate_transformation_mode", "half_pixel"),
        _choice(node, "nearest_mode", "round_prefer_floor"),
        _choice(node, "keep_aspect_ratio_policy", "stretch"),
        node.attribute("cubic_coeff_a", -0.75),
        bool(node.attribute("antialias", 0)),
        bool(node.attribute("exclude_outside", 0)),
        node.attribute("extrapolation_value", 0.0),
    )
    found = example(data)
    if style.mode != "nearest" and found is not None and not found.is_floating_point():
        node.refuse(f"mode '{style.mode}' of integers, whose rounding runtimes do not agree on")
    region = None if style.coordinates != "tf_crop_and_resize" else _numbers(roi)
    return resampled(data, region, _numbers(scales), _numbers(sizes), node.attribute("axes", None), style)


def upsample(node: NodeView, x: Tensor | Sizes, scales: Tensor | Sizes | None = None) -> Tensor:
    factors = node.required("scales", list) if scales is None else as_numbers(scales)
    return resampled(data_of(node, x), None, factors, None, None, Style(_mode(node), "asymmetric", "simple"))


def _mode(node: NodeView) -> str:
    mode = node.attribute("mode", "nearest")
    return "linear" if mode == "bilinear" else _choice(node, "mode", "nearest")


def _choice(node: NodeView, name: str, default: str) -> str:
    value = node.attribute(name, default)
    if value not in CHOICES[name]:
        node.refuse(f"attribute '{name}' should be one of {', '.join(CHOICES[name])}, got '{value}'")
    return value


def _numbers(value: Tensor | Sizes | None) -> Any:
    """A list of numbers; an empty tensor is as good as none."""
    return None if value is None or (isinstance(value, Tensor) and value.numel() == 0) else as_numbers(value)


def grid_sample(node: NodeView, x: Tensor, grid: Tensor) -> Tensor:
    mode, padding = node.attribute("mode", "linear"), node.attribute("padding_mode", "zeros")
    if mode not in GRID_MODES or padding not in ("zeros", "border", "reflection"):
        node.refuse(f"expected a known 'mode' and 'padding_mode', got '{mode}' and '{padding}'")
    return call(F.grid_sample, x, grid, GRID_MODES[mode], padding, bool(node.attribute("align_corners", 0)))


@deferred
def _affine_grid(theta: Tensor, size: list[int], align_corners: bool) -> Tensor:
    return F.affine_grid(theta, size, align_corners)


def affine_grid(node: NodeView, theta: Tensor | Sizes, size: Tensor | Sizes) -> Tensor:
    return _affine_grid(data_of(node, theta), as_numbers(size), bool(node.attribute("align_corners", 0)))


OPERATORS: dict[str, Callable[..., Any]] = {
    "AffineGrid": affine_grid,
    "GridSample": lambda node, x, grid: grid_sample(node, data_of(node, x), data_of(node, grid)),
    "Resize": resize,
    "Upsample": upsample,
}
