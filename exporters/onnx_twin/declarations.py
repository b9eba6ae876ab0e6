"""What a graph declares of its input and its output."""

from typing import Any

import torch
from onnx import GraphProto, ValueInfoProto
from torch import Tensor

from dgad_tk.common import UserError
from exporters.onnx_twin.node import HINT
from exporters.onnx_twin.tensors import DTYPES, dtype_of
from exporters.onnx_twin.tracing import call, example

BATCH, UNKNOWN = 840, 224
"""Sizes that an example input gets where the graph leaves them open: its batch, and any other axis.

A size of some value inside that is the same at batches 1 and 840 is taken for one that the batch does not change. 840
has many divisors, so that batches which are split and joined fit.
"""


def image_of(graph: GraphProto) -> ValueInfoProto:
    """The graph's one input.

    Raises:
        UserError: there is none, several, or it is no tensor.
    """
    initializers = {proto.name for proto in graph.initializer}
    initializers.update(proto.values.name for proto in graph.sparse_initializer)
    inputs: list[ValueInfoProto] = [
        info for info in graph.input if info.name not in initializers
    ]  # IR version 3 lists weights as inputs
    if len(inputs) != 1:
        names = ", ".join(f"'{info.name}'" for info in inputs) or "none"
        raise UserError(
            f"expected an ONNX graph with one input, the images, got {names}",
            hint="is it an image classifier?",
        )
    check_tensor(inputs[0], "input")
    return inputs[0]


def examples(image: ValueInfoProto) -> tuple[Tensor | None, Tensor | None]:
    """An input without data, and one of another batch if every other size is declared.

    Raises:
        UserError: it has more entries than can be counted.
    """
    kind = image.type.tensor_type
    dtype = dtype_of(kind.elem_type, f"input '{image.name}'")
    if not kind.HasField("shape"):
        return None, None
    declared = [dim.dim_value for dim in kind.shape.dim]
    sizes = [size if size > 0 else UNKNOWN if axis else BATCH for axis, size in enumerate(declared)]
    batch = [1 if size > 1 else BATCH for size in sizes[:1]]  # none of a scalar
    known = all(size > 0 for size in declared[1:])
    try:
        first = torch.empty(sizes, dtype=dtype, device="meta")
        return first, torch.empty(batch + sizes[1:], dtype=dtype, device="meta") if known else None
    except RuntimeError:
        raise UserError(
            f"expected input '{image.name}' to be images, got the shape {declared}", hint="is it an image classifier?"
        ) from None


def as_declared(value: Any, info: ValueInfoProto) -> Any:
    """`value` in the type that the graph declares: quantised integers are floats on the way."""
    dtype, found = DTYPES.get(info.type.tensor_type.elem_type), example(value)
    integers = dtype is not None and not dtype.is_floating_point and dtype is not torch.bool
    return call(Tensor.to, value, dtype) if integers and found is not None and found.is_floating_point() else value


def check_tensor(info: ValueInfoProto, what: str) -> None:
    """`info` is a tensor of numbers.

    Raises:
        UserError: it is a sequence, a map, an optional, or holds strings.
    """
    kind = info.type.WhichOneof("value")
    if kind not in ("tensor_type", None):
        raise UserError(f"{what} '{info.name}' should be a tensor, got a {kind.removesuffix('_type')}", hint=HINT)
    if kind is not None and info.type.tensor_type.elem_type:
        dtype_of(info.type.tensor_type.elem_type, f"{what} '{info.name}'")
