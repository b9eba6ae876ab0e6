"""ONNX files in half precision: the fp32 graph with weights and activations in float16."""

import warnings
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from dgad_tk.artifact import Artifact
from exporters.to_onnx import DEFAULT_OPSET, to_onnx, write_onnx

LARGEST = float(np.finfo(np.float16).max)


def save_onnx_fp16(model: nn.Module, artifact: Artifact, path: Path, opset: int = DEFAULT_OPSET) -> None:
    """Write `model` (eval mode) as an ONNX file that computes in float16. Input and logits stay float32.

    Weights too large for float16 are cut to its largest number; the comparison with the source tells whether that
    matters.

    Args:
        opset: as for `save_onnx`.

    Raises:
        UserError: an opset that the exporter cannot write.
    """
    record = artifact.model_copy(update={"precision": "float16"})
    write_onnx(to_float16(to_onnx(model, artifact, opset)), record, path)


def to_float16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A graph's half-precision version, its inputs and outputs in float32 as before. `proto` is used up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*float32 number.*will be truncated")
        half = convert_float_to_float16(proto, max_finite_val=LARGEST, keep_io_types=True)
    from onnxscript import ir  # half a second to import, which those who only open files need not wait

    # The converter puts its casts last, also those that the first node reads.
    model = ir.from_proto(half)
    model.graph.sort()
    sorted_half: onnx.ModelProto = ir.to_proto(model)
    return sorted_half
