"""Models of one operator of ONNX Runtime's own domain."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


CONTRIB = "com.microsoft"


FLOAT = np.dtype(np.float32)


def node_model(
    op: str,
    x: Mapping[str, Array],
    order: list[str],
    weights: Mapping[str, Array],
    output: np.dtype[Any],
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one operator of ONNX Runtime's domain, whose inputs are `order`: those of `x`, and constants."""
    node = helper.make_node(op, order, ["y"], domain=attributes.pop("domain", CONTRIB), **attributes)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in x.items()
    ]
    outputs = [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(output), None)]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "graph", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model: onnx.ModelProto, x: Array) -> Array:
    """ONNX Runtime's first output."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def scales(**values: Any) -> dict[str, Array]:
    return {name: np.array(value, np.float32) for name, value in values.items()}
