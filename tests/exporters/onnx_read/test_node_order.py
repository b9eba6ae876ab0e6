"""Files whose nodes are out of order. What may be unsorted, ONNX's checker and ONNX Runtime say."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from exporters.formats import load
from exporters.onnx_read.parts import sort_nodes

FLOAT = TensorProto.FLOAT


def model_of(nodes: list[onnx.NodeProto], **constants: object) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 3, 8, 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def names(model: ModelProto) -> list[str]:
    return [node.output[0] for node in model.graph.node]


def run(model: ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info("b", FLOAT, ["N", 3, 8, 8])])


def test_subgraphs_read_from_outside_and_are_sorted_too() -> None:
    abs_then_exp = helper.make_node("Neg", ["c"], ["b"]), helper.make_node("Abs", ["late"], ["c"])
    chosen = helper.make_node(
        "If",
        ["yes"],
        ["y"],
        then_branch=branch(*abs_then_exp),
        else_branch=branch(helper.make_node("Abs", ["x"], ["b"])),
    )
    model = model_of([chosen, helper.make_node("Exp", ["x"], ["late"])], yes=True)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    sort_nodes(model.graph)
    onnx.checker.check_model(model)
    assert names(model) == ["late", "y"]
    x = np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32)
    np.testing.assert_allclose(run(model, x), -np.exp(x), rtol=1e-6)


def test_a_graph_in_order_is_not_touched() -> None:
    nodes = [
        helper.make_node("Exp", ["x"], ["a"]),
        helper.make_node("Add", ["a", "late"], ["y"]),
        helper.make_node("Abs", ["x"], ["unread"]),
        helper.make_node("Neg", ["x"], ["late"]),
    ]
    model = model_of(nodes)
    sort_nodes(model.graph)
    onnx.checker.check_model(model)
    assert sorted(names(model)) == ["a", "late", "unread", "y"]
    before = model.SerializeToString()
    sort_nodes(model.graph)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("reads", ["y", "b"])
def test_a_cycle_is_left_alone(reads: str) -> None:
    nodes = [
        helper.make_node("Add", ["x", "late"], ["y"]),
        helper.make_node("Add", ["x", reads], ["b"]),
        helper.make_node("Neg", ["b"], ["late"]),
    ]
    model = model_of(nodes)
    before = model.SerializeToString()
    sort_nodes(model.graph)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("shape", ["chain", "fan"])
def test_large_graphs(shape: str) -> None:
    """A chain in reverse is as deep as it is long, and deeper than Python's calls may be; a fan reads all others."""
    count = 5_000
    nodes = [
        helper.make_node("Neg", [f"n{index}" if shape == "chain" else "x"], [f"n{index + 1}"]) for index in range(count)
    ]
    if shape == "chain":
        nodes.reverse()
    else:
        nodes.insert(0, helper.make_node("Sum", [f"n{index + 1}" for index in range(count)], ["y"]))
    model = model_of(nodes)
    sort_nodes(model.graph)
    expected = [f"n{index + 1}" for index in range(count)] + (["y"] if shape == "fan" else [])
    assert names(model) == expected


def test_a_file_that_a_converter_left_unsorted(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    weights = {
        "w": draw.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "v": draw.normal(size=(4, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    full = model_of(nodes, **weights)
    full.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, ["N", 5]))
    half = convert_float_to_float16(full, keep_io_types=True)
    with pytest.raises(onnx.checker.ValidationError):  # or this tests nothing
        onnx.checker.check_model(half)
    path = tmp_path / "half.onnx"
    onnx.save(half, path)
    predictor = load(path)
    images = draw.random((3, 3, 8, 8), dtype=np.float32)
    assert predictor.precision == "fp16"
    np.testing.assert_allclose(predictor.predict(images), run(half, images), rtol=1e-3, atol=1e-3)

    x = torch.from_numpy(images).requires_grad_()
    kernel, matrix = (torch.from_numpy(weights[name]) for name in "wv")
    expected = torch.relu(torch.nn.functional.conv2d(x, kernel, padding=1)).mean((2, 3)) @ matrix
    (true,) = torch.autograd.grad(expected[:, 1].sum(), x)
    assert predictor.module is not None
    (found,) = torch.autograd.grad(predictor.module(x)[:, 1].sum(), x)
    assert (found - true).abs().max() <= 1e-2 * true.abs().max()
