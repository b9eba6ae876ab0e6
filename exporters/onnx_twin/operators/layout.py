"""Entries that move and do not change: joining, permuting, cutting off triangles."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.tensors import dtype_of
from exporters.onnx_twin.tracing import call, deferred


@deferred
def _reverse(x: Tensor) -> Tensor:
    return x.permute(*range(x.dim() - 1, -1, -1))


def transpose(node: NodeView, x: Tensor) -> Tensor:
    order = node.attribute("perm", None)
    return _reverse(x) if order is None else call(torch.permute, x, order)


def concat(node: NodeView, *inputs: Tensor) -> Tensor:
    return call(torch.cat, list(inputs), node.required("axis", int))


@deferred
def _depth_outermost(x: Tensor, block: int) -> Tensor:
    """Depth to space where the position in the block counts before the channel."""
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def depth_to_space(node: NodeView, x: Tensor) -> Tensor:
    block, mode = node.required("blocksize", int), node.attribute("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        node.refuse(f"attribute 'mode' should be DCR or CRD, got '{mode}'")
    return _depth_outermost(x, block) if mode == "DCR" else call(F.pixel_shuffle, x, block)


@deferred
def _space_to_depth(x: Tensor, block: int) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def space_to_depth(node: NodeView, x: Tensor) -> Tensor:
    block, mode = node.required("blocksize", int), node.attribute("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        node.refuse(f"attribute 'mode' should be DCR or CRD, got '{mode}'")
    return _space_to_depth(x, block) if mode == "DCR" else call(F.pixel_unshuffle, x, block)


def triangle(node: NodeView, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(node.constant(k, "k").item())
    return call(torch.triu if node.attribute("upper", 1) else torch.tril, x, diagonal)


@deferred
def _eye(x: Tensor, diagonal: int, dtype: torch.dtype | None) -> Tensor:
    ones = torch.ones(x.shape, dtype=dtype or x.dtype, device=x.device)
    return ones.triu(diagonal).tril(diagonal)


def eye_like(node: NodeView, x: Tensor) -> Tensor:
    dtype = dtype_of(node.required("dtype", int), str(node)) if node.has("dtype") else None
    return _eye(x, node.attribute("k", 0), dtype)


@deferred
def _reverse_sequences(x: Tensor, lengths: Tensor, batch_axis: int, time_axis: int) -> Tensor:
    """The first entries of each sequence turned round, as many as its length says."""
    steps = torch.arange(x.shape[time_axis], device=x.device)
    ends = lengths.long()[:, None]
    order = torch.where(steps < ends, ends - 1 - steps, steps)  # (batch, time)
    order = order if batch_axis < time_axis else order.t()
    shape = [size if axis in (batch_axis, time_axis) else 1 for axis, size in enumerate(x.shape)]
    return torch.gather(x, time_axis, order.reshape(shape).expand_as(x))


def reverse_sequence(node: NodeView, x: Tensor, lengths: Tensor) -> Tensor:
    return _reverse_sequences(x, lengths, node.attribute("batch_axis", 1), node.attribute("time_axis", 0))


OPERATORS: dict[str, Callable[..., Any]] = {
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "EyeLike": eye_like,
    "ReverseSequence": reverse_sequence,
    "SpaceToDepth": space_to_depth,
    "Transpose": transpose,
    "Trilu": triangle,
}
