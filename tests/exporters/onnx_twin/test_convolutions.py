"""Frozen convolutions compute what the twin computed before, which is torch's own convolutions."""

import copy
import io
import pickle
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from dgad_tk.ascent.frozen_conv import FrozenConv2d
from exporters.onnx_twin import to_torch
from exporters.onnx_twin.convolutions import freeze_convolutions

SHAPE = (2, 4, 9, 8)


def conv(x: str, y: str, weight: str, bias: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, weight, bias] if bias else [x, weight], [y], **attributes)


def relu(x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [x], [y])


def twin_of(nodes: list[onnx.NodeProto], **weights: tuple[int, ...]) -> fx.GraphModule:
    """A twin in double precision, whose weights are drawn."""
    draw = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(draw.normal(size=size).astype(np.float32), name) for name, size in weights.items()],
    )
    return to_torch(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).double()


def frozen(twin: fx.GraphModule) -> fx.GraphModule:
    changed = copy.deepcopy(twin)
    freeze_convolutions(changed)
    return changed


def convolutions(twin: fx.GraphModule) -> list[FrozenConv2d]:
    return [module for module in twin.modules() if isinstance(module, FrozenConv2d)]


def in_place(twin: fx.GraphModule) -> int:
    """How many ReLUs write over what they read."""
    return sum(node.kwargs.get("inplace", False) for node in twin.graph.nodes)


def images() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def results(module: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """What a module gives, and the gradient of a weighted sum of it."""
    x = images().requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape)
    return y.detach(), torch.autograd.grad((y * weights).sum(), x)[0]


def assert_same(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    for found, expected in zip(results(ours), results(theirs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def every_kind() -> fx.GraphModule:
    return twin_of(
        [
            conv("x", "a", "full", "shift", pads=[1, 1, 1, 1]),
            relu("a", "b"),
            conv("b", "c", "depth", pads=[1, 1, 1, 1], strides=[2, 1], group=4),
            relu("c", "d"),
            conv("d", "e", "point", strides=[2, 2]),
            conv("e", "f", "grouped", "shift", pads=[1, 0, 1, 1], group=2),  # one end more than the other
            relu("f", "g"),
            conv("g", "h", "full", "shift", pads=[2, 2, 2, 2], dilations=[2, 2]),  # the weights of the first
            conv("h", "i", "depth", pads=[3, 3, 3, 3], group=4),  # wider than the kernel
            relu("i", "y"),
        ],
        full=(4, 4, 3, 3),
        shift=(4,),
        depth=(4, 1, 3, 3),
        point=(4, 4, 1, 1),
        grouped=(4, 2, 3, 2),
    )


def test_logits_and_gradients() -> None:
    twin = every_kind()
    changed = frozen(twin)
    assert len(convolutions(changed)) == 6
    assert not any(node.target is F.conv2d for node in changed.graph.nodes)
    assert in_place(changed) == 4
    assert_same(changed, twin)


@pytest.mark.parametrize("reader", ["Neg", "Relu", "Conv"])
def test_a_convolution_with_a_second_reader(reader: str) -> None:
    """In place, the ReLU would change what the other reader gets."""
    other = conv("a", "c", "w") if reader == "Conv" else helper.make_node(reader, ["a"], ["c"])
    nodes = [conv("x", "a", "w"), relu("a", "b"), other, helper.make_node("Sub", ["b", "c"], ["y"])]
    if reader == "Relu":  # of which each alone may not work in place
        nodes[-1] = helper.make_node("Concat", ["b", "c", "a"], ["y"], axis=1)
    twin = twin_of(nodes, w=(4, 4, 1, 1))
    changed = frozen(twin)
    assert in_place(changed) == 0
    assert_same(changed, twin)


def test_a_convolution_that_is_the_output_too() -> None:
    """`to_torch` keeps one output; whoever adds another must find it untouched."""
    twin = twin_of([conv("x", "a", "w"), relu("a", "y")], w=(4, 4, 1, 1))
    node = next(node for node in twin.graph.nodes if node.target is F.conv2d)
    output = next(node for node in twin.graph.nodes if node.op == "output")
    output.args = ((node, output.args[0]),)
    twin.recompile()
    before, after = frozen(twin)(images())
    assert (before < 0).any()
    torch.testing.assert_close(before, twin(images())[0])
    torch.testing.assert_close(after, twin(images())[1])


def test_what_the_relu_gives_may_have_many_readers() -> None:
    nodes = [conv("x", "a", "w"), relu("a", "b"), helper.make_node("Exp", ["b"], ["c"])]
    twin = twin_of([*nodes, helper.make_node("Mul", ["b", "c"], ["y"])], w=(4, 4, 1, 1))
    changed = frozen(twin)
    assert in_place(changed) == 1
    assert_same(changed, twin)


def test_images_and_weights_are_not_written_to() -> None:
    """Also where a kernel of one weight, 1, might pass its input through."""
    twin = frozen(twin_of([conv("x", "a", "w", group=4), relu("a", "y")], w=(4, 1, 1, 1)))
    x, weight = images(), convolutions(twin)[0].weight.clone()
    twin(x)
    assert torch.equal(x, images())
    assert torch.equal(convolutions(twin)[0].weight, weight)


def test_weights_that_are_computed_stay_as_they_are() -> None:
    twin = twin_of([conv("w", "y", "x", kernel_shape=[9, 8])], w=(3, 4, 9, 8))
    assert not convolutions(frozen(twin))
    assert_same(frozen(twin), twin)


def test_names_that_the_file_took() -> None:
    names = [f"conv.{count}" for count in range(6)]
    chain = ["x", "a", "b", "c", "d", "e", "y"]
    nodes = [conv(chain[index], chain[index + 1], name) for index, name in enumerate(names)]
    # One is read by more than its convolution, and stays.
    nodes += [helper.make_node("ReduceSum", [names[1]], ["s"], keepdims=0), helper.make_node("Add", ["y", "s"], ["z"])]
    nodes[5].output[0], nodes[-1].input[0], nodes[-1].output[0] = "f", "f", "y"
    twin = twin_of(nodes, **dict.fromkeys(names, (4, 4, 1, 1)))
    assert_same(frozen(twin), twin)


def test_a_module_like_any_other() -> None:
    twin = every_kind()
    changed = frozen(twin)
    assert not any(each.requires_grad for each in changed.parameters())
    expected = results(changed)  # its kernels are laid out from here on
    for copied in (
        copy.deepcopy(changed),
        pickle.loads(pickle.dumps(changed)),
        copy.deepcopy(changed).float().double(),
    ):
        for ours, theirs in zip(results(copied), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    buffer = io.BytesIO()
    torch.save(changed, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.load(buffer, weights_only=False)(images()), expected[0])
    single = copy.deepcopy(changed).float()(images().float())
    assert single.dtype is torch.float32
    torch.testing.assert_close(single.double(), expected[0], rtol=1e-4, atol=1e-3)


def test_sizes_without_data() -> None:
    changed = frozen(every_kind()).to("meta")
    found = changed(torch.empty(7, *SHAPE[1:], dtype=torch.float64, device="meta"))
    assert found.is_meta
    assert found.shape == (7, *every_kind()(images()).shape[1:])
