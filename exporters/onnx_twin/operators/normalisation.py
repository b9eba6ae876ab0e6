"""Normalisations, by statistics that are known or by those of the input."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator, row
from exporters.onnx_twin.tracing import call, deferred


def batch_normalization(
    node: NodeView, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    node.ignore("momentum", "is_test")
    # Before opset 14 it is the number of outputs that says so.
    if node.attribute("training_mode", False) or (node.opset < 14 and any(node.outputs[1:])):
        node.refuse("training_mode is on")
    node.only("spatial", 1)
    epsilon = node.attribute("epsilon", 1e-5)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return _by_statistics(x, scale, shift, mean, variance, epsilon)
    return call(F.batch_norm, x, mean, variance, scale, shift, False, 0.0, epsilon)


@deferred
def _by_statistics(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> Tensor:
    """With gradients to the statistics, which torch's own takes for constants."""
    factor, shape = scale * torch.rsqrt(variance + epsilon), (-1, *[1] * (x.dim() - 2))
    return (x - mean.reshape(shape)) * factor.reshape(shape) + shift.reshape(shape)


def instance_normalization(node: NodeView, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    # The function of torch.nn.functional refuses images of one pixel.
    return call(torch.instance_norm, x, scale, shift, None, None, True, 0.0, node.attribute("epsilon", 1e-5), False)


@deferred
def _layer_norm(x: Tensor, scale: Tensor, shift: Tensor | None, axis: int, epsilon: float) -> Tensor:
    shape = x.shape[axis:]
    shift = None if shift is None else shift.expand(shape)
    return F.layer_norm(x, shape, scale.expand(shape), shift, epsilon)


@deferred
def _mean_and_scale(x: Tensor, axis: int, epsilon: float) -> tuple[Tensor, Tensor]:
    axes = list(range(axis % x.dim(), x.dim()))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return mean, torch.rsqrt(variance + epsilon)


def layer_normalization(node: NodeView, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Any:
    node.only("stash_type", 1)
    axis, epsilon = node.attribute("axis", -1), node.attribute("epsilon", 1e-5)
    result = _layer_norm(x, scale, shift, axis, epsilon)
    if len(node.outputs) == 1:
        return result
    statistics = _mean_and_scale(x, axis, epsilon)
    return result, statistics[0], statistics[1]


@deferred
def _rms_norm(x: Tensor, scale: Tensor, axis: int, epsilon: float) -> Tensor:
    shape = x.shape[axis:]
    return F.rms_norm(x, shape, scale.expand(shape), epsilon)


def rms_normalization(node: NodeView, x: Tensor, scale: Tensor) -> Tensor:
    node.only("stash_type", 1)
    return _rms_norm(x, scale, node.attribute("axis", -1), node.attribute("epsilon", 1e-5))


@deferred
def _repeated(per_group: Tensor, groups: int, like: Tensor) -> Tensor:
    """A value per group as a value per channel of `like`."""
    return per_group.repeat_interleave(like.shape[1] // groups)


def group_normalization(node: NodeView, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    node.only("stash_type", 1)
    groups = node.required("num_groups", int)
    if node.opset < 21:
        scale, shift = _repeated(scale, groups, x), _repeated(shift, groups, x)
    return call(torch.group_norm, x, groups, scale, shift, node.attribute("epsilon", 1e-5))


@deferred
def _unit(x: Tensor, p: int, axis: int) -> Tensor:
    """A vector of zeros stays one."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@deferred
def _local_response(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """torch's even window reaches further down the channels, ONNX's further up: count them backwards."""
    return F.local_response_norm(x.flip(1), size, alpha, beta, bias).flip(1)


@deferred
def _standardised(x: Tensor, axes: list[int]) -> Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) / (variance.sqrt() + 1e-9)


LEARNED: dict[Any, tuple[int, ...]] = {
    F.batch_norm: (3, 4),
    F.layer_norm: (2, 3),
    F.rms_norm: (2,),
    torch.group_norm: (2, 3),
    torch.instance_norm: (1, 2),
    _layer_norm: (1, 2),
    _rms_norm: (1,),
}

OPERATORS: dict[str, Operator] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": row(_local_response, size=int, alpha=1e-4, beta=0.75, bias=1.0),
    "LayerNormalization": layer_normalization,
    "LpNormalization": row(_unit, p=2, axis=-1),
    "MeanVarianceNormalization": row(_standardised, axes=[0, 2, 3]),
    "RMSNormalization": rms_normalization,
}
