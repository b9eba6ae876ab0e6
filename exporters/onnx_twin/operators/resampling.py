"""Images at another resolution: Resize, Upsample and sampling on a grid."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.interpolation import Style, resampled
from exporters.onnx_twin.operators.row import Operator
from exporters.onnx_twin.operators.shapes import Amounts
from exporters.onnx_twin.sizes import as_numbers
from exporters.onnx_twin.tracing import call, example

COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
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
