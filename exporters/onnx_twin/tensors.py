"""ONNX tensors and element types as torch's."""

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from dgad_tk.common import UserError

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
