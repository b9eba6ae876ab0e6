"""ONNX element types, tensors and declared inputs as torch's."""

import numpy as np
import torch
from onnx import GraphProto, TensorProto, ValueInfoProto, numpy_helper
from torch import Tensor

from dgad_tk.common import UserError

HINT = "without it there are no gradients through this file; please report it, or export the model another way"
CLASSIFIER = "is it an image classifier?"
ANY_BATCH, ANY_SIZE = 840, 224
"""Sizes that an example input gets where the graph leaves them open: its batch, and any other axis.

A size of some value inside that is the same at batches 1 and 840 is taken for one that the batch does not change. 840
has many divisors, so that batches which are split and joined fit.
"""

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
}


def dtype_of(data_type: int, where: str) -> torch.dtype:
    """The torch dtype of an ONNX element type.

    Raises:
        UserError: torch has none (strings, 4-bit and 8-bit floats).
    """
    if data_type not in DTYPES:
        known = data_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(data_type).lower() if known else str(data_type)
        raise UserError(
            f"{where}: the twin has no tensors of type {name}",
            hint="without it there are no gradients through this file; export the model in float32",
        )
    return DTYPES[data_type]


def from_proto(proto: TensorProto) -> Tensor:
    """A tensor of its own, on the CPU.

    Raises:
        UserError: of a type that torch lacks, or its bytes do not match its shape.
    """
    dtype = dtype_of(proto.data_type, f"tensor '{proto.name}'")
    try:
        array = np.ascontiguousarray(numpy_helper.to_array(proto)).reshape(tuple(proto.dims))
    except (ValueError, TypeError) as error:
        raise UserError(f"tensor '{proto.name}' is damaged: {error}", hint="export the model again") from None
    if dtype is torch.bfloat16:  # NumPy has no such type of its own
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def image_of(graph: GraphProto) -> ValueInfoProto:
    """The graph's one input.

    Raises:
        UserError: there is none, several, or it is no tensor.
    """
    initializers = {proto.name for proto in graph.initializer}  # IR version 3 lists weights as inputs
    inputs: list[ValueInfoProto] = [info for info in graph.input if info.name not in initializers]
    if len(inputs) != 1:
        names = ", ".join(f"'{info.name}'" for info in inputs) or "none"
        raise UserError(f"expected an ONNX graph with one input, the images, got {names}", hint=CLASSIFIER)
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
    sizes = [size if size > 0 else ANY_SIZE if axis else ANY_BATCH for axis, size in enumerate(declared)]
    batch = [1 if size > 1 else ANY_BATCH for size in sizes[:1]]  # none of a scalar
    known = all(size > 0 for size in declared[1:])
    try:
        first = torch.empty(sizes, dtype=dtype, device="meta")
        return first, torch.empty(batch + sizes[1:], dtype=dtype, device="meta") if known else None
    except RuntimeError:
        raise UserError(
            f"expected input '{image.name}' to be images, got the shape {declared}", hint=CLASSIFIER
        ) from None


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
