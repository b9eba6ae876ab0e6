"""Entries that move and do not change: joining, permuting, cutting off triangles."""

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator, row
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
def _depth_to_space(x: Tensor, blocksize: int, mode: str) -> Tensor:
    """In mode CRD the channel counts before the position in the block, as in torch's own; in mode DCR after it."""
    if mode == "DCR":
        x = torch.unflatten(x, 1, (blocksize**2, -1)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(x, blocksize)


@deferred
def _space_to_depth(x: Tensor, blocksize: int, mode: str) -> Tensor:
    x = F.pixel_unshuffle(x, blocksize)
    return torch.unflatten(x, 1, (-1, blocksize**2)).transpose(1, 2).flatten(1, 2) if mode == "DCR" else x


def triangle(node: NodeView, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(node.constant(k, "k").item())
    return call(torch.triu if node.attribute("upper", True) else torch.tril, x, diagonal)


@deferred
def _eye(x: Tensor, diagonal: int, dtype: torch.dtype | None) -> Tensor:
    ones = torch.ones(x.shape, dtype=dtype or x.dtype, device=x.device)
    return ones.triu(diagonal).tril(diagonal)


@deferred
def _reverse_sequences(x: Tensor, lengths: Tensor, batch_axis: int, time_axis: int) -> Tensor:
    """The first entries of each sequence turned round, as many as its length says."""
    steps = torch.arange(x.shape[time_axis], device=x.device)
    ends = lengths.long()[:, None]
    order = torch.where(steps < ends, ends - 1 - steps, steps)  # (batch, time)
    order = order if batch_axis < time_axis else order.t()
    shape = [size if axis in (batch_axis, time_axis) else 1 for axis, size in enumerate(x.shape)]
    return torch.gather(x, time_axis, order.reshape(shape).expand_as(x))


OPERATORS: dict[str, Operator] = {
    "Concat": concat,
    "DepthToSpace": row(_depth_to_space, blocksize=int, mode=("DCR", "CRD")),
    "EyeLike": lambda node, x: _eye(x, node.attribute("k", 0), node.dtype("dtype")),
    "ReverseSequence": row(_reverse_sequences, batch_axis=1, time_axis=0),
    "SpaceToDepth": row(_space_to_depth, blocksize=int, mode=("DCR", "CRD")),
    "Transpose": transpose,
    "Trilu": triangle,
}
