"""The graph that ONNX Runtime makes of a quantised or half-precision file, and runs.

The runtime does not compute what such a file says. It turns QuantizeLinear and DequantizeLinear around float operators
into integer operators, which add up exactly and round once. On a CPU it computes half-precision graphs in float32 and
leaves out most roundings in between. So the twins of these files are built from the runtime's graph. The twin of a
float file is built from the file's own.

The graph is taken at the extended level of optimisation. The full level, which sessions run at by default, only changes
the layout of images in memory after that; the numbers are the same. It is the graph for a CPU: a session on a GPU keeps
the float operators between their quantisers and computes in half precision, and differs by those roundings.
"""

import tempfile
from pathlib import Path
from typing import Literal

import onnx
import onnxruntime
from onnx import ModelProto, TensorProto

from dgad_tk.common import UserError, reason_of
from exporters.onnx_read.parts import graphs, nodes, tensors
from exporters.onnx_read.runtime_memory import session_options
from exporters.onnx_twin.operators import contrib, quantised

Precision = Literal["fp32", "fp16", "int8"]

QUANTISED = frozenset(quantised.OPERATORS) | frozenset(contrib.QUANTISED)


def precision_of(model: ModelProto) -> Precision:
    """Whether a graph has quantised operators, or else any half-precision tensor."""
    every = list(nodes(model.graph))
    if any(node.op_type in QUANTISED for node in every):
        return "int8"
    ends = (end for graph in graphs(model.graph) for end in (*graph.input, *graph.output))
    kinds = {tensor.data_type for tensor in tensors(model)} | {end.type.tensor_type.elem_type for end in ends}
    casts = (item.i for node in every if node.op_type == "Cast" for item in node.attribute if item.name == "to")
    return "fp16" if TensorProto.FLOAT16 in kinds.union(casts) else "fp32"


def runtime_graph(model: ModelProto) -> ModelProto:
    """`model` as ONNX Runtime's CPU provider runs it.

    Args:
        model: with its tensors inside. It is not changed.

    Returns:
        A model of standard operators and those of the domain com.microsoft. An output of integers is declared a float
        one, so that gradients reach the integers.

    Raises:
        UserError: ONNX Runtime cannot run it, or it is larger than a protobuf may be.
    """
    with tempfile.TemporaryDirectory(prefix="dgad-") as folder:
        written = Path(folder) / "runtime.onnx"
        extended = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options = session_options(threads=1, level=extended, bounded=True)
        options.optimized_model_filepath = str(written)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - neither ONNX Runtime's exceptions nor protobuf's share a base class
            raise UserError(
                f"ONNX Runtime cannot optimise the graph: {reason_of(error)}", hint="export it again"
            ) from None
        optimised = onnx.load(str(written))
    for info in optimised.graph.output:
        if info.type.tensor_type.elem_type in (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32):
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    return optimised
