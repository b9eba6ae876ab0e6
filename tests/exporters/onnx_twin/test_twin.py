"""The twin against outside judges: ONNX Runtime for logits, the source module for gradients."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from dgad_tk.common import UserError
from exporters.onnx_twin import to_torch

FLOAT = TensorProto.FLOAT


class Normalize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.49, 0.48, 0.45]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.25, 0.24, 0.26]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std  # type: ignore[operator]


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ResNet(nn.Module):
    """A CIFAR-like one, whose head is written with sizes that depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Normalize(), nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2), Block(16, 32, 2))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.blocks(self.stem(x)), 8)
        return self.head(x.view(x.size(0), -1))


class Inverted(nn.Module):
    """An inverted residual of MobileNetV2, with V3's squeeze and activations behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Normalize(), nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.block = nn.Sequential(
            nn.Conv2d(8, 32, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
            nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
            nn.Conv2d(32, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.head = nn.Sequential(
            nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        return self.head(x * self.gate(x))


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Normalize(),
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.1),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(16 * 9 * 9, 32),
            nn.GELU(),
            nn.Linear(32, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class PreActivation(nn.Module):
    """As in a Wide ResNet: BatchNorm before the convolution, which nobody can fold; then Softmax and arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, 2, 1)
        self.bn2, self.head = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv(F.relu(self.bn(x)))))
        x = self.head(x.mean(dim=(2, 3)))
        return torch.log_softmax(x, 1) + 0.5 * torch.softmax(x, dim=1).pow(2)


class Tokens(nn.Module):
    """Shape arithmetic: a class token for every image, sizes multiplied and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 10)
        self.token = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        n, c, h, w = x.shape
        x = x.reshape(n, c, h * w).permute(0, 2, 1)
        x = torch.cat([self.token.expand(n, -1, -1), x], dim=1)
        x = x.reshape(n, -1, 2, c // 2).transpose(1, 2)
        scores = torch.softmax(x @ x.transpose(-2, -1) / (c // 2) ** 0.5, dim=-1)
        x = (scores @ x).transpose(1, 2).reshape(n, -1, c)
        return self.head(x[:, 0] + torch.tanh(x[:, -1]))


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": ResNet,
    "inverted": Inverted,
    "vgg": Vgg,
    "preactivation": PreActivation,
    "tokens": Tokens,
}


@cache
def _source(name: str, randomised: bool) -> nn.Module:
    """A net of known weights. Untouched BatchNorm gives graphs that share one bias through Identity."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = NETS[name]()
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and randomised:
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
    return net.eval().requires_grad_(False)


def source(name: str, *, randomised: bool = True) -> nn.Module:
    return _source(name, randomised)  # one key of the cache, however it is called


@cache
def exported(name: str, opset: int, *, dynamo: bool, randomised: bool = True) -> onnx.ModelProto:
    """The net as ONNX, its batch dynamic. Exports take seconds, so each is made once."""
    net, x = source(name, randomised=randomised), torch.rand(2, 3, 32, 32)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both exporters warn of their own future, and copyreg of torch's types
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(net, (x,), file, dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False)
        else:
            torch.onnx.export(
                net,
                (x,),
                file,
                dynamo=False,
                opset_version=opset,
                # A graph as other tools leave it, with BatchNorm and constants in it: the twin has to fold by itself.
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
            )
    return onnx.load_from_string(file.getvalue())


def runtime(model: onnx.ModelProto, x: Tensor) -> Tensor:
    """ONNX Runtime's first output."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def images(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(n)).to(dtype)


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    labels = torch.arange(len(x), device=x.device)
    (grad,) = torch.autograd.grad(F.cross_entropy(net(x), labels, reduction="sum"), x)
    return grad


def check_twin(net: nn.Module, model: onnx.ModelProto) -> fx.GraphModule:
    """Logits as ONNX Runtime's at three batch sizes, gradients as the source's."""
    before = model.SerializeToString()
    twin = to_torch(model)
    assert model.SerializeToString() == before
    for n in (1, 2, 5):
        expected = runtime(model, images(n))
        actual = twin(images(n))
        assert actual.shape == expected.shape
        assert (actual - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
        reference = gradient(net, images(n))
        assert (gradient(twin, images(n)) - reference).abs().max() <= 1e-4 * reference.abs().max()
    return twin


EXPORTS = [
    *[("resnet", opset, True) for opset in (18, 20, 23)],
    *[("resnet", opset, False) for opset in (9, 11, 13, 17, 20)],
    *[("inverted", opset, True) for opset in (18, 23)],
    *[("inverted", opset, False) for opset in (9, 11, 13, 17, 20)],
    *[("vgg", opset, True) for opset in (18, 22)],
    *[("vgg", opset, False) for opset in (11, 13, 17, 20)],
    ("preactivation", 18, True),
    *[("preactivation", opset, False) for opset in (9, 11, 13, 20)],
    *[("tokens", opset, True) for opset in (18, 23)],
    *[("tokens", opset, False) for opset in (9, 11, 13, 17, 20)],
]


@pytest.mark.parametrize(("name", "opset", "dynamo"), EXPORTS)
def test_logits_and_gradients(name: str, opset: int, dynamo: bool) -> None:
    """Both exporters, old and new opsets."""
    model = exported(name, opset, dynamo=dynamo)
    assert {entry.version for entry in model.opset_import if not entry.domain} == {opset}
    check_twin(source(name), model)


@pytest.mark.parametrize("dynamo", [True, False])
def test_shared_biases(dynamo: bool) -> None:
    """Untouched BatchNorms have equal tensors, which the exporters share."""
    model = exported("resnet", 18, dynamo=dynamo, randomised=False)
    check_twin(source("resnet", randomised=False), model)


def test_double_precision() -> None:
    """`.double()` raises the whole twin to double precision: nothing rounds on the way."""
    for name, dynamo in (("resnet", True), ("inverted", False), ("tokens", True)):
        twin = to_torch(exported(name, 18, dynamo=dynamo)).double()
        x = images(2, torch.float64)
        assert twin(x).dtype == torch.float64
        # A finite difference shows a rounding to float32 as an error above 1e-2.
        direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 1e-7
        loss = [F.cross_entropy(twin(x + sign * direction), torch.arange(2), reduction="sum") for sign in (1, -1)]
        expected = (gradient(twin, x) * direction).sum() * 2
        torch.testing.assert_close(loss[0] - loss[1], expected, rtol=1e-5, atol=1e-16)


def test_a_module_like_any_other() -> None:
    """Eval mode, named buffers without gradients, copied, pickled, compiled by torch's tracer in one graph."""
    for name, dynamo in (("resnet", True), ("inverted", False), ("tokens", False)):
        twin = to_torch(exported(name, 18 if dynamo else 13, dynamo=dynamo))
        assert isinstance(twin, fx.GraphModule)
        assert not twin.training
        assert list(twin.parameters()) == []
        assert name == "inverted" or "head_weight" in dict(twin.named_buffers())
        assert not any(buffer.requires_grad for buffer in twin.buffers())
        expected = twin(images(2))
        for again in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
            torch.testing.assert_close(again(images(2)), expected, rtol=0, atol=0)
        compiled = torch.compile(twin, backend="eager", fullgraph=True, dynamic=True)
        torch.testing.assert_close(compiled(images(2)), expected)
        torch.testing.assert_close(compiled(images(5)), twin(images(5)))
        assert copy.deepcopy(twin).to("meta")(images(5).to("meta")).shape == (5, 10)  # nothing stays behind


def test_lean_graph() -> None:
    """No BatchNorm, Identity, constant or dead node is left; the one size read is the batch."""
    for dynamo in (True, False):
        twin = to_torch(exported("resnet", 18, dynamo=dynamo))
        steps = [node for node in twin.graph.nodes if node.op.startswith("call_")]
        names = [getattr(node.target, "__name__", node.target) for node in steps]
        assert sorted(set(names)) in (
            ["add", "avg_pool2d", "conv2d", "div", "linear", "relu", "reshape", "size", "sub"],
            ["add", "avg_pool2d", "conv2d", "div", "linear", "relu", "reshape", "sub"],
        )
        assert names.count("conv2d") == 9
        assert all(node.users for node in twin.graph.nodes if node.op != "output")


def model_of(
    nodes: list[onnx.NodeProto],
    *,
    opset: int = 18,
    shape: tuple[int | str, ...] = ("n", 4),
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    inputs: list[onnx.ValueInfoProto] | None = None,
    output: str = "y",
    functions: list[onnx.FunctionProto] | None = None,
    domains: dict[str, int] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        inputs if inputs is not None else [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(output, FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(*item) for item in (domains or {}).items()),
    ]
    return helper.make_model(graph, opset_imports=imports, functions=functions or [], ir_version=9)


def test_shapes_are_followed() -> None:
    """Shape, Gather, arithmetic, Concat and Reshape with a dynamic batch become sizes, without tensors between."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Gather", ["shape", "one"], ["c"], axis=0),
        helper.make_node("Div", ["c", "two"], ["half"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Unsqueeze", ["half", "axes"], ["half1"]),
        helper.make_node("Concat", ["n1", "minus", "half1"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {name: np.array(value, np.int64) for name, value in (("zero", 0), ("one", 1), ("two", 2))}
    weights |= {name: np.array([value], np.int64) for name, value in (("axes", 0), ("minus", -1))}
    model = model_of(nodes, shape=("n", "c"), weights=weights)
    twin = to_torch(model)
    names = [
        str(getattr(node.target, "__name__", node.target)) for node in twin.graph.nodes if node.op.startswith("call_")
    ]
    assert names == ["size", "size", "_number", "reshape"]
    assert list(twin.buffers()) == []
    for n, c in ((1, 4), (3, 4), (5, 6)):
        x = torch.rand(n, c)
        torch.testing.assert_close(twin(x), x.reshape(n, 2, c // 2), rtol=0, atol=0)
        torch.testing.assert_close(twin(x), runtime(model, x), rtol=0, atol=0)


def test_sizes_move_like_other_numbers() -> None:
    """Split, which no arithmetic knows, is the twin's own; nothing of it is left in the graph."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Split", ["shape"], ["n", "c", "w"], axis=0),
        helper.make_node("Mul", ["c", "w"], ["cw"]),
        helper.make_node("Concat", ["cw", "n"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    twin = to_torch(model_of(nodes, shape=("n", "c", "w")))
    names = [node.target.__name__ for node in twin.graph.nodes if node.op == "call_function"]
    assert names == ["_number", "reshape"]
    assert twin(torch.zeros(2, 3, 5)).shape == (15, 2)


def test_an_input_without_a_shape() -> None:
    """Where not even a rank is known, sizes are tensors, and the result is the same."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["s"], axis=1),
        helper.make_node("Transpose", ["s"], ["t"]),
        helper.make_node("Div", ["t", "ten"], ["y"]),
    ]
    weights: dict[str, np.ndarray[Any, Any]] = {
        name: np.array([value], np.int64) for name, value in (("zero", 0), ("one", 1), ("minus", -1))
    }
    weights["ten"] = np.array(10, np.float32)
    inputs = [helper.make_tensor_value_info("x", FLOAT, None)]
    twin = to_torch(model_of(nodes, opset=11, weights=weights, inputs=inputs))
    x = torch.rand(3, 2, 4)
    torch.testing.assert_close(twin(x), x.flatten(1).softmax(1).T / 10)


def test_unknown_operators_are_all_named() -> None:
    """Every one at once, with domain, opset and node; what the output does not need is not asked about."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Foo", ["a"], ["b"], name="first"),
        helper.make_node("Foo", ["b"], ["c"], name="second"),
        helper.make_node("Bar", ["c"], ["y"], name="third", domain="com.example"),
        helper.make_node("Dead", ["x"], ["unused"], name="fourth"),
    ]
    with pytest.raises(UserError) as caught:
        to_torch(model_of(nodes, domains={"com.example": 3}))
    expected = (
        "the twin has no operators 'Foo' (domain 'ai.onnx', opset 18), node 'first'; "
        "'Bar' (domain 'com.example', opset 3), node 'third'"
    )
    assert expected == caught.value.message
    assert "no gradients through this file" in caught.value.hint
    with pytest.raises(UserError) as caught:
        to_torch(model_of([helper.make_node("Foo", ["x"], ["y"], name="only")]))
    assert caught.value.message == "the twin has no operator 'Foo' (domain 'ai.onnx', opset 18), node 'only'"


def _refused() -> Iterator[tuple[str, onnx.ModelProto]]:
    x = helper.make_tensor_value_info("x", FLOAT, ["n", 4])
    other = helper.make_tensor_value_info("other", FLOAT, ["n", 4])
    relu = helper.make_node("Relu", ["x"], ["y"])
    yield "one input, the images, got 'x', 'other'", model_of([relu], inputs=[x, other])
    yield "got none", model_of([relu], inputs=[])
    sequence = helper.make_tensor_sequence_value_info("x", FLOAT, None)
    yield "input 'x' should be a tensor, got a sequence", model_of([relu], inputs=[sequence])
    text = helper.make_tensor_value_info("x", TensorProto.STRING, ["n"])
    yield "no tensors of type string", model_of([relu], inputs=[text])
    yield "'mystery'", model_of([helper.make_node("Relu", ["x"], ["y"], mystery=1)])
    yield "nothing before", model_of([helper.make_node("Add", ["x", "missing"], ["y"])])
    cycle = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    yield "nothing before", model_of([*cycle, helper.make_node("Relu", ["b"], ["y"])])
    yield "approximate", model_of([helper.make_node("Gelu", ["x"], ["y"], approximate="wild")], opset=20)
    yield (
        "training_mode",
        model_of([helper.make_node("Dropout", ["x", "", "t"], ["y"])], weights={"t": np.array(True)}),
    )
    norm = helper.make_node("BatchNormalization", ["x", "w", "w", "w", "w"], ["values", "y"])  # the running mean
    yield "output 1", model_of([norm], shape=("n", 3, 8), weights={"w": np.ones(3, np.float32)})
    yield "float", model_of([helper.make_node("LeakyRelu", ["x"], ["y"], alpha="high")])
    yield (
        "cannot run 'Gemm'",
        model_of([helper.make_node("Gemm", ["x", "w"], ["y"])], weights={"w": np.ones((3, 2, 2))}),
    )
    yield (
        "auto_pad",
        model_of([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2], auto_pad="SOME")], shape=("n", 3, 8)),
    )


@pytest.mark.parametrize(("expected", "model"), list(_refused()))
def test_refused_by_name(expected: str, model: onnx.ModelProto) -> None:
    """What the twin does not have is an error that says what, never another result."""
    with pytest.raises(UserError, match=expected):
        to_torch(model)


def test_functions_are_inlined() -> None:
    """A model's local function is run like the nodes it consists of."""
    body = [helper.make_node("Mul", ["a", "a"], ["b"])]
    function = helper.make_function("local", "Square", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    node = helper.make_node("Square", ["x"], ["y"], domain="local")
    twin = to_torch(model_of([node], functions=[function], domains={"local": 1}))
    x = torch.rand(2, 4)
    torch.testing.assert_close(twin(x), x * x)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 1), (4, 3), (3, 1)])
def test_auto_pad_and_uneven_pads(auto_pad: str, kernel: int, stride: int) -> None:
    """Convolutions and pools whose two ends are padded differently, judged by ONNX Runtime."""
    weight = np.random.default_rng(0).standard_normal((4, 2, kernel, kernel)).astype(np.float32)
    window: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
    for pads in ({"auto_pad": auto_pad}, {"pads": [0, 1, 1, 0]}):
        conv = helper.make_node("Conv", ["x", "w"], ["c"], group=2, **window, **pads)
        for pool in ("MaxPool", "AveragePool"):
            nodes = [conv, helper.make_node(pool, ["c"], ["y"], **window, **pads)]
            model = model_of(nodes, shape=("n", 4, 17, 19), weights={"w": weight})
            x = torch.rand(2, 4, 17, 19)
            torch.testing.assert_close(to_torch(model)(x), runtime(model, x), rtol=1e-5, atol=1e-5)
