"""The graph that ONNX Runtime makes of a quantised or half-precision file, and runs.

What such a file says is not what is computed. Of QuantizeLinear and DequantizeLinear around float operators the runtime
makes integer operators, which add up exactly and round once; on a CPU it computes half-precision graphs in float32 and
leaves most roundings in between out. So their twins are built from its graph, and a float file's from the file's own.

The graph is taken at the extended level of optimisation. The full level, which sessions run at by default, only changes
the layout of images in memory after that; the numbers are the same. It is the graph for a CPU: a session on a GPU keeps
the float operators between their quantisers and computes in half precision, and differs by those roundings.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import onnx
import onnxruntime
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from dgad_tk.common import UserError, reason_of
from exporters.onnx_twin.operators import contrib, quantised
from exporters.runtime_memory import bound_memory

Precision = Literal["fp32", "fp16", "int8"]

QUANTISED = frozenset(quantised.OPERATORS) | frozenset(contrib.QUANTISED)
RESHAPING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that leave every number what it is."""


def precision_of(model: ModelProto) -> Precision:
    """Whether a graph has quantised operators, or else any half-precision tensor."""
    graphs = list(_graphs(model.graph))
    if any(node.op_type in QUANTISED for graph in graphs for node in graph.node):
        return "int8"
    return "fp16" if any(_has_halves(graph) for graph in graphs) else "fp32"


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
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(written)
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        bound_memory(options)
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


def logit_step(model: ModelProto) -> float:
    """The quantisation step of the first output, 0 where the last operator that computes gives floats."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {proto.name: proto for proto in graph.initializer}
    for made in graph.node:
        if made.op_type == "Constant":
            constants.update((made.output[0], item.t) for item in made.attribute if item.name == "value")
    node: NodeProto | None = producers.get(graph.output[0].name)
    while node is not None and node.op_type in RESHAPING:
        node = producers.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear" or node.input[1] not in constants:
        return 0.0
    return float(numpy_helper.to_array(constants[node.input[1]]).max())


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and the graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _has_halves(graph: GraphProto) -> bool:
    infos = [*graph.input, *graph.output]
    constants: Iterable[TensorProto] = (item.t for node in graph.node for item in node.attribute if item.HasField("t"))
    casts = (item.i for node in graph.node if node.op_type == "Cast" for item in node.attribute if item.name == "to")
    kinds = {info.type.tensor_type.elem_type for info in infos}
    kinds.update(proto.data_type for proto in (*graph.initializer, *constants))
    return TensorProto.FLOAT16 in kinds.union(casts)
