"""Small ONNX classifiers written by hand, and what ONNX Runtime itself says of them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SHAPE = (3, 8, 8)
PIXELS = 192
FLAT = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"], transB=1)]
POOLED = [helper.make_node("GlobalAveragePool", ["c"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]


def weights(classes: int = 4) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((classes, PIXELS)).astype(np.float32)


def graph(
    nodes: list[Any],
    constants: dict[str, np.ndarray] | None = None,
    *,
    shape: list[Any] | None = ["N", 3, 8, 8],  # noqa: B006 - never changed
    kind: int = TensorProto.FLOAT,
    functions: list[Any] | None = None,
    opsets: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """A model from "x", of any rank where `shape` is None, to "y"."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None])],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    used = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 17}).items()]
    return helper.make_model(made, opset_imports=used, functions=functions or [], ir_version=8)


def linear(**more: Any) -> onnx.ModelProto:
    return graph(FLAT, {"w": weights()}, **more)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def runs(path: Path, given: np.ndarray) -> np.ndarray:
    """ONNX Runtime's own answer, without anything of ours in between."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": given})[0])


def images(count: int = 5, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).random((count, *shape), dtype=np.float32)
