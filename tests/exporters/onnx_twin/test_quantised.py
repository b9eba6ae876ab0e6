"""Twins of quantised and half-precision graphs. ONNX Runtime judges, at the level of optimisation it deploys with."""

import pickle
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from contrib_models import FLOAT, Array, node_model, run, scales
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, fx, nn

from dgad_tk.common import UserError
from evaluators.target.judge import allowed
from exporters.onnx_open.open import load_onnx
from exporters.onnx_open.runtime_graph import precision_of, runtime_graph
from exporters.onnx_read.parts import answer_step
from exporters.onnx_twin import to_torch

pytestmark = pytest.mark.portable


def logit_step(model: onnx.ModelProto) -> float:
    return answer_step(model, model.graph.output[0].name)


class Net(nn.Module):
    """Something of everything that quantisers treat each in their own way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, 1, 1)
        self.depthwise, self.point = nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.Conv2d(12, 12, 1)
        self.gate, self.last = nn.Conv2d(12, 24, 1), nn.Conv2d(24, 24, 3, 2, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem((x - 0.5) / 0.25))
        x = F.relu(x + self.inner(x))
        x = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(F.leaky_relu(self.point(self.depthwise(x)), 0.1), 2)], dim=1)
        x = x * torch.sigmoid(self.gate(x[:, :12].mean((2, 3), keepdim=True)))
        x = F.relu6(self.last(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def images(count: int, seed: int = 0) -> Tensor:
    """Smooth images `(count, 3, 16, 16)` in [0, 1]."""
    noise = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(16, 16), mode="bicubic").clamp(0, 1)


@cache
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().eval().requires_grad_(False)
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        net.head.bias -= net(images(256)).mean(0)  # so that predictions differ
    return net


@cache
def exported() -> onnx.ModelProto:
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own future
        torch.onnx.export(
            net(),
            (images(2),),
            file,
            dynamo=False,  # in a tenth of the time
            opset_version=17,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "n"}},
        )
    model = onnx.load_from_string(file.getvalue())
    del model.graph.value_info[:]  # shapes that the dynamic quantiser contradicts when it transposes weights
    return model


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.batches = iter([{"input": images(32, seed).numpy()} for seed in (1, 2)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.batches, None)


STATIC = {
    "QDQ, U8S8 per channel": (QuantFormat.QDQ, True, QuantType.QUInt8, QuantType.QInt8),
    "QDQ, U8S8 per tensor": (QuantFormat.QDQ, False, QuantType.QUInt8, QuantType.QInt8),
    "QDQ, U8U8": (QuantFormat.QDQ, False, QuantType.QUInt8, QuantType.QUInt8),
    "QDQ, S8S8": (QuantFormat.QDQ, True, QuantType.QInt8, QuantType.QInt8),
    "QOperator, U8S8 per channel": (QuantFormat.QOperator, True, QuantType.QUInt8, QuantType.QInt8),
    "QOperator, S8S8 per tensor": (QuantFormat.QOperator, False, QuantType.QInt8, QuantType.QInt8),
}


@cache
def quantised(name: str, folder: Path) -> onnx.ModelProto:
    source, target = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(exported(), source)
    if name == "dynamic":
        quantize_dynamic(source, target)
    else:
        form, per_channel, activations, weights = STATIC[name]
        quantize_static(
            source,
            target,
            Calibration(),
            quant_format=form,
            per_channel=per_channel,
            activation_type=activations,
            weight_type=weights,
        )
    return onnx.load(target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantised")


def gradient(module: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    logits = module(x)
    (found,) = torch.autograd.grad(F.cross_entropy(logits, logits.detach().argmin(1), reduction="sum"), x)
    return found


@pytest.mark.parametrize("name", [*STATIC, "dynamic"])
def test_quantised_nets(name: str, folder: Path) -> None:
    """Predictions and logits as ONNX Runtime's; gradients near those of the float net."""
    model = quantised(name, folder)
    assert precision_of(model) == "int8"
    step, x = logit_step(model), images(1000, seed=3)
    assert (step > 0) == (name != "dynamic")
    twin = to_torch(runtime_graph(model))
    expected, actual = run(model, x.numpy()), twin(x).numpy()
    step = step or float(np.ptp(expected)) / 255
    assert np.abs(actual - expected).max() <= 2.01 * step
    assert (actual.argmax(1) == expected.argmax(1)).mean() >= 0.999
    assert len(set(expected.argmax(1))) >= 5
    float_gradient, found = gradient(net(), x[:50]), gradient(twin, x[:50])
    assert F.cosine_similarity(found.flatten(1), float_gradient.flatten(1)).mean() > 0.9


def test_static_formats_become_integer_graphs(folder: Path) -> None:
    """The twin of a QDQ file has no more float operators than ONNX Runtime runs."""
    runs = runtime_graph(quantised("QDQ, U8S8 per channel", folder))
    operators = [node.op_type for node in runs.graph.node]
    assert operators.count("QLinearConv") == 6
    assert {"QLinearAdd", "QLinearConcat", "QLinearMul", "QLinearSigmoid", "QGemm"} <= set(operators)
    assert not {"Add", "Concat", "Conv", "Gemm", "Mul", "Relu", "Sigmoid"} & set(operators)


def test_an_attack_through_the_twin_fools_the_file(folder: Path) -> None:
    """The straight-through gradient is a direction: what is found along it holds in ONNX Runtime."""
    model, x = quantised("QDQ, U8S8 per channel", folder), images(100, seed=4)
    twin, eps, clean = to_torch(runtime_graph(model)), 8 / 255, run(model, x.numpy()).argmax(1)
    noise = torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5, -eps, eps)
    adversarial, labels = x.clone(), torch.from_numpy(clean)
    for _ in range(10):
        z = adversarial.clone().requires_grad_()
        (direction,) = torch.autograd.grad(F.cross_entropy(twin(z), labels, reduction="sum"), z)
        adversarial = (adversarial + eps / 4 * direction.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    fooled = (run(model, adversarial.numpy()).argmax(1) != clean).mean()
    by_noise = (run(model, (x + noise).clamp(0, 1).numpy()).argmax(1) != clean).mean()
    assert fooled > 0.6
    assert fooled > by_noise + 0.3


def test_a_twin_is_a_graph_module_that_can_be_pickled(folder: Path) -> None:
    twin, x = to_torch(runtime_graph(quantised("QDQ, S8S8", folder))), images(4)
    assert isinstance(twin, fx.GraphModule)
    again = pickle.loads(pickle.dumps(twin))
    torch.testing.assert_close(again(x), twin(x), rtol=0, atol=0)


@pytest.mark.parametrize("kept", [True, False])
def test_half_precision(kept: bool) -> None:
    """Half weights, and half images and logits or float ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numbers too small for float16
        model = convert_float_to_float16(exported(), keep_io_types=kept)
    assert precision_of(model) == "fp16"
    assert logit_step(model) == 0
    x = images(200, seed=5) if kept else images(200, seed=5).half()
    expected, actual = run(model, x.numpy()), to_torch(runtime_graph(model))(x)
    assert actual.dtype == x.dtype
    assert np.abs(actual.float().numpy() - expected).max() <= 1e-3 * np.abs(expected).max()
    assert (actual.numpy().argmax(1) == expected.argmax(1)).mean() >= 0.99
    assert (
        F.cosine_similarity(
            gradient(net(), x[:50].float()).flatten(),
            gradient(to_torch(runtime_graph(model)), x[:50]).float().flatten(),
            0,
        )
        > 0.999
    )


def test_float_graphs_are_no_business_of_this() -> None:
    assert precision_of(exported()) == "fp32"
    assert logit_step(exported()) == 0


def qdq(scale: float, zero: int, kind: type[Any] = np.uint8) -> fx.GraphModule:
    """x -> QuantizeLinear -> MaxPool -> DequantizeLinear."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["p"], kernel_shape=[1, 1]),
        helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    weights = [
        numpy_helper.from_array(np.array(scale, np.float32), "s"),
        numpy_helper.from_array(np.array(zero, kind), "z"),
    ]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    return to_torch(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_gradient_of_a_quantiser() -> None:
    """One inside its range, through MaxPool on integers too, and zero where it saturates."""
    x = torch.tensor([-3.0, -1.01, -0.99, -0.3, 0.0, 0.26, 1.0, 1.54, 1.56, 9.0]).reshape(1, 1, 2, 5).requires_grad_()
    y = qdq(0.01, 100)(x)  # from -1 to 1.55
    expected = torch.tensor([-1.0, -1.0, -0.99, -0.3, 0.0, 0.26, 1.0, 1.54, 1.55, 1.55]).reshape(1, 1, 2, 5)
    torch.testing.assert_close(y.detach(), expected)
    (found,) = torch.autograd.grad(y.sum(), x)
    assert found.flatten().tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_gradient_of_a_quantised_convolution() -> None:
    """That of the convolution followed by a clip to the representable range, at the rounded input."""
    draw = np.random.default_rng(0)
    w = draw.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    weights = {"w": w, "wz": np.zeros(4, np.int8), "ws": draw.uniform(0.01, 0.03, 4).astype(np.float32)}
    weights |= {"xz": np.array(100, np.uint8), "yz": np.array(0, np.uint8)} | scales(xs=0.01, ys=0.02)
    order = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    x = draw.integers(0, 256, (2, 3, 8, 8)).astype(np.uint8)
    model = node_model("QLinearConv", {"x": x}, order, weights, np.dtype(np.uint8), domain="", pads=[1, 1, 1, 1])
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT  # so that the twin's output keeps its gradient
    integers = torch.from_numpy(x).float().requires_grad_()
    real = (torch.from_numpy(x).float() - 100).mul(0.01).requires_grad_()
    kernel = torch.from_numpy(w).float() * torch.from_numpy(weights["ws"]).reshape(4, 1, 1, 1)
    clipped = F.conv2d(real, kernel, padding=1).clamp(0, 255 * 0.02)
    factor = torch.randn(clipped.shape)
    (expected,) = torch.autograd.grad((clipped * factor).sum(), real)
    (found,) = torch.autograd.grad((to_torch(model)(integers) * 0.02 * factor).sum(), integers)
    assert 0.2 < (clipped == 0).float().mean() < 0.8  # this is the ReLU
    torch.testing.assert_close(found / 0.01, expected, rtol=1e-4, atol=1e-4)


def test_what_the_runtime_does_not_run_is_refused() -> None:
    x, w = np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 1, 3, 3), np.float32)
    broken = node_model("FusedConv", {"x": x}, ["x", "w"], {"w": w}, FLOAT, nonsense="?")
    with pytest.raises(UserError, match="ONNX Runtime cannot optimise the graph"):
        runtime_graph(broken)


def test_opened_as_a_predictor(folder: Path) -> None:
    """A file's precision and step are known to who compares the twin with the runtime."""
    model = quantised("QDQ, U8S8 per channel", folder)
    path = folder / "opened.onnx"
    onnx.save(model, path)
    predictor, x = load_onnx(path), images(32)
    assert predictor.precision == "int8"
    assert predictor.logit_step == pytest.approx(logit_step(model))
    assert predictor.module is not None
    difference = np.abs(predictor.module(x).numpy() - predictor.predict(x.numpy())).max()
    assert difference <= 2.01 * predictor.logit_step
    onnx.save(exported(), path)
    assert (load_onnx(path).precision, load_onnx(path).logit_step) == ("fp32", 0.0)


def test_a_step_that_is_a_node() -> None:
    """Some exporters write a scale as a Constant."""
    constants = {"step": np.float32(0.25), "zero": np.uint8(3)}
    for as_nodes in (False, True):
        protos = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        made = [helper.make_node("Constant", [], [proto.name], value=proto) for proto in protos] if as_nodes else []
        graph = helper.make_graph(
            [
                *made,
                helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"]),
            ],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 10])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
            [] if as_nodes else protos,
        )
        assert logit_step(helper.make_model(graph)) == 0.25


def test_what_a_twin_may_differ_by() -> None:
    """Two steps where logits are quantised; elsewhere a part of how far an image's logits are apart."""

    def tolerances(precision: str, logits: np.ndarray, step: float = 0.0) -> tuple[np.ndarray, float]:
        predictor: Any = SimpleNamespace(precision=precision, logit_step=step, finish=None)
        return allowed(predictor, logits)

    logits = np.linspace(-5.2, 20.3, 1000, dtype=np.float32).reshape(100, 10)
    spread = 9 * 25.5 / 999
    for precision, part in (("fp32", 1e-3), ("fp16", 1e-2)):
        steps = 64 * np.spacing(np.abs(logits).max(axis=1))  # of float32
        assert tolerances(precision, logits)[0] == pytest.approx(part * spread + steps, rel=1e-4)
        assert tolerances(precision, logits)[1] == pytest.approx(1)
    assert tolerances("int8", logits, 0.3)[0] == pytest.approx(np.full(100, 0.6), rel=0.01)
    assert tolerances("int8", logits)[0] == pytest.approx(np.full(100, 0.2), rel=0.01)
    assert tolerances("int8", logits[:10], 0.3)[1] == 1
