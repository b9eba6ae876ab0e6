"""Values inside an ONNX graph of ours, as ONNX Runtime computes them, and which modules of the source they are of."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from dgad_tk.artifacts.predictor import Images
from exporters.onnx_read.runtime_memory import FULL, session_options
from exporters.onnx_write.float32 import SCOPES

AT_A_TIME = 64
"""Images that are run at a time."""


def values_of(
    model: onnx.ModelProto,
    names: Sequence[str],
    images: Images,
    *,
    at_a_time: int = AT_A_TIME,
    level: onnxruntime.GraphOptimizationLevel = FULL,
    folder: Path | None = None,
) -> Iterator[dict[str, NDArray[Any]]]:
    """The values that are called `names`, for some images at a time.

    Args:
        model: of one input. It is not changed.
        names: of outputs of nodes.
        images: `(N, C, H, W)` in [0, 1].
        at_a_time: images that are run together; all their values are held at once.
        level: how far ONNX Runtime optimises the graph.
        folder: of the graph's external data, if it has any.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {output.name for output in model.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    options = session_options(level=level)
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    for start in range(0, len(images), at_a_time):
        part = np.ascontiguousarray(images[start : start + at_a_time])
        yield dict(zip(names, session.run(list(names), {entry.name: part}), strict=True))


def scopes_of(node: onnx.NodeProto) -> list[str]:
    """Names of the modules that a node was called in, the outermost first."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            return [str(scope) for scope in ast.literal_eval(entry.value)[:-1]]
    return []


def describe_node(node: onnx.NodeProto) -> str:
    """The operator of a node, the first of its inputs that looks like a module's weight, and its name."""
    weight = next((f" of {name}" for name in node.input[1:] if "weight" in name), "")
    return f"{node.op_type}{weight.removesuffix('_DequantizeLinear_Output')}, node {node.name}"
