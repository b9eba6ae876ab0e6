"""Entries that move and do not change: joining, permuting, cutting out, and margins around them.

Positions and amounts may be sizes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator, row
from exporters.onnx_twin.operators.shapes import Amounts
from exporters.onnx_twin.sizes import as_numbers
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


@deferred
def _equal_parts(x: Tensor, count: int, axis: int) -> tuple[Tensor, ...]:
    """`count` parts of one size, the last one smaller where it does not fit."""
    size = -(-x.shape[axis] // count)
    sizes = [max(0, min(size, x.shape[axis] - index * size)) for index in range(count)]
    return torch.split(x, sizes, axis)


def split(node: NodeView, x: Tensor, sizes: Amounts | None = None) -> tuple[Tensor, ...]:
    axis, count = node.attribute("axis", 0), node.attribute("num_outputs", len(node.outputs))
    given = node.attribute("split", None) if sizes is None else as_numbers(sizes)
    parts = _equal_parts(x, count, axis) if given is None else call(torch.split, x, given, axis)
    return tuple(parts[index] for index in range(len(node.outputs)))


@deferred
def _slice(x: Tensor, starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None) -> Tensor:
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    index = [slice(None)] * x.dim()
    backwards = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:  # torch only walks forwards: take the same entries from the other end, and turn them round
            chosen = range(x.shape[axis])[start:end:step]
            backwards.append(axis)
            start, end, step = (chosen[-1], chosen[0] + 1, -step) if len(chosen) else (0, 0, 1)
        # Exporters write 2^63 - 1 for an open end or step, of which torch warns.
        size = x.shape[axis]
        start, end = (max(-size, min(each, size)) for each in (start, end))
        index[axis] = slice(start, end, min(step, max(size, 1)))
    x = x[tuple(index)]
    return x.flip(backwards) if backwards else x


def slice_(node: NodeView, x: Tensor, *bounds: Amounts | None) -> Tensor:
    """`bounds` are starts, ends, axes and steps; before opset 10 they are attributes."""
    if node.opset < 10:
        return _slice(x, node.required("starts", list), node.required("ends", list), node.attribute("axes", None), None)
    numbers: list[Any] = [None if bound is None else as_numbers(bound) for bound in bounds]
    starts, ends, axes, steps = (*numbers, None, None)[:4]
    return _slice(x, starts, ends, axes, steps)


@deferred
def _pad(x: Tensor, pads: list[int], axes: list[int] | None, mode: str, value: float) -> Tensor:
    """`pads` are the beginnings, then the ends, of `axes`."""
    chosen = [axis % x.dim() for axis in (range(x.dim()) if axes is None else axes)]
    count = len(chosen)
    pairs = {
        axis: (begin, end) for axis, begin, end in zip(chosen, pads[:count], pads[count:], strict=True) if begin or end
    }
    if mode == "constant":
        # torch counts from the last axis, and is faster with fewer.
        reached = range(min(pairs, default=0), x.dim())
        return F.pad(x, [pad for axis in reversed(reached) for pad in pairs.get(axis, (0, 0))], value=value)
    for axis, (begin, end) in pairs.items():
        if min(begin, end) < 0:  # what is cut off is not repeated either
            x = x.narrow(axis, max(0, -begin), x.shape[axis] + min(0, begin) + min(0, end))
            begin, end = max(0, begin), max(0, end)
        x = x.index_select(axis, _mirrored(x.shape[axis], begin, end, mode, x.device))
    return x


def _mirrored(size: int, begin: int, end: int, mode: str, device: torch.device) -> Tensor:
    """The indices 0..size-1, continued by `begin` and `end` at its ends."""
    index = torch.arange(-begin, size + end, device=device)
    if mode == "edge":
        return index.clamp(0, size - 1)
    if mode == "wrap":
        return index % size
    period = max(1, 2 * (size - 1))  # a triangle wave
    index = index % period
    return torch.minimum(index, period - index)


def pad(
    node: NodeView,
    x: Tensor,
    pads: Amounts | None = None,
    value: Tensor | None = None,
    axes: Amounts | None = None,
) -> Tensor:
    mode = node.choice("mode", "constant", "edge", "reflect", "wrap")
    if node.opset < 11:
        amounts, filler = node.required("pads", list), node.attribute("value", 0.0)
    else:
        amounts = as_numbers(node.refuse("input 'pads' is missing") if pads is None else pads)
        filler = 0 if value is None else node.constant(value, "constant_value").item()
    return _pad(x, amounts, None if axes is None else as_numbers(axes), mode, filler)


OPERATORS: dict[str, Operator] = {
    "Concat": concat,
    "DepthToSpace": row(_depth_to_space, blocksize=int, mode=("DCR", "CRD")),
    "EyeLike": lambda node, x: _eye(x, node.attribute("k", 0), node.dtype("dtype")),
    "Pad": pad,
    "ReverseSequence": row(_reverse_sequences, batch_axis=1, time_axis=0),
    "Slice": slice_,
    "SpaceToDepth": row(_space_to_depth, blocksize=int, mode=("DCR", "CRD")),
    "Split": split,
    "Transpose": transpose,
    "Trilu": triangle,
}
