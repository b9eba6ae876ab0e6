"""Counts of networks: against published ones, against torch's counter, and against numbers written out."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from shared import randomise_batch_norm

from exporters.bench.complexity import Complexity, module_complexity, onnx_complexity

PUBLISHED = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "mobilenet_v2": torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1,
}


def exported(module: torch.nn.Module, *sample: int) -> ModelProto:
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, which is there for its speed
        torch.onnx.export(module.eval(), (torch.zeros(1, *sample),), file, dynamo=False, opset_version=17)
    return onnx.load_from_string(file.getvalue())


def graph(nodes: list[NodeProto], weights: dict[str, np.ndarray], shape: list[int]) -> ModelProto:
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    """torchvision prints multiply-adds in units of 1e9, to three digits, and parameters to the last."""
    meta = PUBLISHED[name].meta
    module = torchvision.models.get_model(name, weights=None).eval()
    counts = module_complexity(module, (3, 224, 224))
    assert counts.multiply_adds is not None
    assert round(counts.multiply_adds / 1e9, 3) == meta["_ops"]
    assert counts.parameters == meta["num_params"]


@pytest.mark.parametrize("name", ["mobilenet_v2", "regnet_x_400mf"])
def test_an_onnx_graph_counts_as_its_module_does(name: str) -> None:
    """The exporter folds BatchNorm: a bias a channel is left of scale and shift."""
    module = randomise_batch_norm(torchvision.models.get_model(name, weights=None).eval())
    norms = [each for each in module.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    expected = module_complexity(module, (3, 64, 64))
    counts = onnx_complexity(exported(module, 3, 64, 64), np.zeros((1, 3, 64, 64), np.float32))
    assert counts.multiply_adds == expected.multiply_adds
    assert counts.parameters == expected.parameters - sum(each.num_features for each in norms)


def test_counts_written_out() -> None:
    """One operator after another, for two images, whose count is halved."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1], group=2),
        helper.make_node("ConvTranspose", ["a", "w2"], ["b"], strides=[2, 2]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "w3", "b3"], ["d"], transB=1),
        helper.make_node("Reshape", ["d", "to"], ["e"]),
        helper.make_node("MatMul", ["e", "w4"], ["f"]),
        helper.make_node("Einsum", ["f", "w5"], ["g"], equation="nij,kj->nik"),
    ]
    weights = {
        "w1": normal(6, 2, 3, 3),
        "b1": normal(6),
        "w2": normal(6, 5, 2, 2),
        "w3": normal(12, 5 * 8 * 8),
        "b3": normal(12),
        "to": np.array([0, 3, 4]),
        "w4": normal(4, 7),
        "w5": normal(9, 7),
    }
    counts = onnx_complexity(graph(nodes, weights, [4, 8, 8]), np.zeros((2, 4, 8, 8), np.float32))
    conv, transposed, gemm = 6 * 4 * 4 * (2 * 9), 6 * 4 * 4 * (5 * 4), 12 * 320
    assert counts.multiply_adds == conv + transposed + gemm + 3 * 7 * 4 + 3 * 9 * 7
    assert counts.parameters == sum(value.size for name, value in weights.items() if name != "to")
    assert counts.weights == "float32"


def test_batch_norm_counts_scale_and_shift() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"]),
    ]
    weights = {"scale": normal(4), "shift": normal(4), "mean": normal(4), "var": np.ones(4, np.float32)}
    counts = onnx_complexity(graph(nodes, weights, [4, 8, 8]), np.zeros((1, 4, 8, 8), np.float32))
    assert counts == Complexity(8, "float32", 0)


def test_attention_counts_as_torch_counts_it() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x[:, :, :5], x[:, :, :5])

    proto = graph(
        [
            helper.make_node("Slice", ["x", "from", "to", "axis"], ["k"]),
            helper.make_node("Attention", ["x", "k", "k"], ["y"]),
        ],
        {"from": np.array([0]), "to": np.array([5]), "axis": np.array([2])},
        [2, 7, 8],
    )
    proto.opset_import[0].version = 23
    counts = onnx_complexity(proto, np.zeros((1, 2, 7, 8), np.float32))
    assert counts.multiply_adds == module_complexity(Net(), (2, 7, 8)).multiply_adds == 2 * (2 * 7 * 5 * 8)


def test_fused_attention_counts_too() -> None:
    """torch has a fast path for this layer that its counter knows nothing of."""
    tokens, width, hidden = 5, 16, 32
    layer = torch.nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True).eval()
    products = 4 * tokens * width * width + 2 * tokens * tokens * width + 2 * tokens * width * hidden
    assert module_complexity(layer, (tokens, width)).multiply_adds == products


def test_a_graph_without_a_twin_has_no_count() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("RNN", ["steps", "w", "r"], ["y"], hidden_size=3),
    ]
    proto = graph(nodes, {"w": normal(1, 3, 6), "r": normal(1, 3, 3)}, [5, 6])
    assert onnx_complexity(proto, np.zeros((1, 5, 6), np.float32)) == Complexity(27, "float32", None)


def test_the_branch_that_is_taken_counts() -> None:
    """The weights of both are stored."""

    def branch(name: str) -> GraphProto:
        node = helper.make_node("MatMul", ["x", name], [f"x_{name}"])
        info = helper.make_tensor_value_info(f"x_{name}", TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [info])

    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    proto = graph([node], {"a": normal(6, 3), "b": normal(6, 4), "yes": np.array(True)}, [6])
    assert onnx_complexity(proto, np.zeros((1, 6), np.float32)) == Complexity(18 + 24, "float32", 18)


def test_only_what_the_network_multiplies_counts() -> None:
    """Sums over windows, interpolation and products of constants cost the twin something, and are no multiply-adds."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["a"], kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Resize", ["a", "", "", "to"], ["b"], mode="cubic", antialias=1),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("MatMul", ["w1", "w2"], ["w"]),
        helper.make_node("MatMul", ["c", "w"], ["d"]),
        helper.make_node("MatMul", ["d", "v"], ["y"]),
    ]
    weights = {"to": np.array([1, 3, 5, 5]), "w1": normal(75, 4), "w2": normal(4, 6), "v": normal(6)}
    counts = onnx_complexity(graph(nodes, weights, [3, 8, 8]), np.zeros((1, 3, 8, 8), np.float32))
    assert counts.multiply_adds == 75 * 6 + 6


class _Images(CalibrationDataReader):
    def __init__(self) -> None:
        self.rest = [{"x": normal(2, 3, 8, 8)}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.rest.pop() if self.rest else None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["qdq", "qoperator", "dynamic"])
def test_quantised_graphs_count_as_the_float_one(tmp_path: Path, way: str) -> None:
    """QLinearConv and QGemm, their QDQ spelling, ConvInteger and MatMulInteger: onnxruntime's quantiser writes them."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "w2", "b2"], ["b"], group=4),
        helper.make_node("Add", ["b", "b"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
    ]
    weights = {"w1": normal(4, 3, 3, 3), "b1": normal(4), "w2": normal(8, 1, 3, 3), "b2": normal(8)}
    weights |= {"w3": normal(10, 8), "b3": normal(10)}
    proto = graph(nodes, weights, [3, 8, 8])
    proto.opset_import[0].version = 17
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(proto, source)
    if way == "dynamic":
        quantize_dynamic(source, target)
    else:
        format = QuantFormat.QDQ if way == "qdq" else QuantFormat.QOperator
        quantize_static(source, target, _Images(), quant_format=format, per_channel=True)
    quantised = onnx.load(target)
    written = {node.op_type for node in quantised.graph.node}
    assert written & {"qdq": {"DequantizeLinear"}, "qoperator": {"QLinearConv"}, "dynamic": {"ConvInteger"}}[way]
    blank = np.zeros((1, 3, 8, 8), np.float32)
    expected, counts = onnx_complexity(proto, blank), onnx_complexity(quantised, blank)
    assert expected.parameters == sum(value.size for value in weights.values())
    assert counts.multiply_adds == expected.multiply_adds == 4 * 64 * 27 + 8 * 36 * 9 + 80
    assert counts.weights in ("int8", "uint8")
    # Where biases stay float they do, and dynamic quantisation multiplies by scales that stand in the graph as weights.
    assert expected.parameters <= counts.parameters <= expected.parameters + (12 if way == "dynamic" else 0)
