"""Files that want blue, green, red, against the same network with its weights turned by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx import helper as h
from onnx import numpy_helper as nh
from torch import nn

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.artifacts.preprocessing import AS_IS, Interface
from dgad_tk.common import UserError
from dgad_tk.data import Split
from evaluators.target.judge import compare_twin
from exporters.formats import load

SHAPE = (3, 6, 6)
IMAGES = np.random.default_rng(0).random((20, *SHAPE), dtype=np.float32)
CAFFE = Interface(channel_order="bgr", input_range=(0, 255), mean=(103.939, 116.779, 123.68))
"""Keras' mode "caffe" of VGG and ResNet: blue, green, red, 0 to 255, less ImageNet's means in that order."""
RANGES = {
    "as is": Interface(channel_order="bgr"),
    "caffe": CAFFE,
    "normalised": Interface(channel_order="bgr", mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229)),
}
LAYOUTS = ["nchw", "nhwc", "flat nchw", "flat nhwc"]


def weights(seed: int = 0) -> np.ndarray:
    """Of a linear classifier of 4 classes, `(4, C, H, W)` in the file's order of channels."""
    return (np.random.default_rng(seed).standard_normal((4, *SHAPE)) / 100).astype(np.float32)


def linear(path: Path, layout: str = "nchw", kind: int = TensorProto.FLOAT) -> Path:
    """An ONNX file whose logits are the weights times the pixels that it is given."""
    w = weights()
    shape: tuple[int, ...] = SHAPE
    if layout.endswith("nhwc"):
        w, shape = w.transpose(0, 2, 3, 1), (6, 6, 3)
    sizes = [108] if layout.startswith("flat") else list(shape)
    nodes, start = [], "x"
    if kind == TensorProto.UINT8:
        nodes, start = [h.make_node("Cast", ["x"], ["c"], to=1)], "c"
    nodes += [h.make_node("Flatten", [start], ["f"]), h.make_node("Gemm", ["f", "w"], ["logits"], transB=1)]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", kind, ["N", *sizes])],
        [h.make_tensor_value_info("logits", 1, ["N", 4])],
        [nh.from_array(w.reshape(4, -1), "w")],
    )
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    return path


def by_hand(interface: Interface, images: np.ndarray) -> np.ndarray:
    """Logits in float64: the images are turned, brought to the range and normalised as Keras and OpenCV users do."""
    low, high = interface.input_range
    x = images[:, ::-1].astype(np.float64) * (high - low) + low
    mean, std = (
        np.float64(each or fallback).reshape(1, -1, 1, 1)
        for each, fallback in ((interface.mean, (0.0,)), (interface.std, (1.0,)))
    )
    return np.einsum("kchw,nchw->nk", weights().astype(np.float64), (x - mean) / std)


def check(predictor: Predictor, interface: Interface, *, step: float = 1e-3) -> None:
    """Answers are those by hand; the module agrees, and its gradients are finite differences of the answers."""
    assert np.allclose(predictor.predict(IMAGES), by_hand(interface, IMAGES), rtol=1e-3, atol=1e-3)
    assert predictor.interface.channel_order == "bgr"
    assert any("blue, green, red" in note for note in predictor.notes)
    assert predictor.module is not None
    x = torch.from_numpy(IMAGES[:2]).requires_grad_()
    (gradient,) = torch.autograd.grad(predictor.module(x)[:, 1].sum(), x)
    for place in ((0, 1, 2), (1, 5, 0), (2, 3, 3)):
        moved = IMAGES[:2].astype(np.float64)
        moved[(slice(None), *place)] += step
        rise = (by_hand(interface, moved) - by_hand(interface, IMAGES[:2]))[:, 1] / step
        assert np.allclose(gradient[(slice(None), *place)], rise, rtol=1e-2, atol=1e-5)
    split = Split(np.round(IMAGES * 255).astype(np.uint8), np.arange(len(IMAGES)), np.zeros(len(IMAGES), np.int64))
    assert compare_twin(predictor, split, np.ones(len(IMAGES), np.bool_), 8) is not None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", RANGES)
def test_onnx_in_every_layout(name: str, layout: str, tmp_path: Path) -> None:
    asked = replace(RANGES[name], layout="nhwc" if layout.endswith("nhwc") else "nchw")
    check(load(linear(tmp_path / "file.onnx", layout), SHAPE, asked), RANGES[name])


def test_the_weights_turned_instead(tmp_path: Path) -> None:
    """A file that wants red, green, blue and is the same network answers the same."""
    bgr = load(linear(tmp_path / "bgr.onnx"), None, RANGES["as is"])
    model = onnx.load(tmp_path / "bgr.onnx")
    turned = np.ascontiguousarray(weights()[:, ::-1]).reshape(4, -1)
    model.graph.initializer[0].CopyFrom(nh.from_array(turned, "w"))
    onnx.save(model, tmp_path / "rgb.onnx")
    rgb = load(tmp_path / "rgb.onnx")
    assert np.allclose(bgr.predict(IMAGES), rgb.predict(IMAGES), atol=1e-6)
    assert not np.allclose(bgr.predict(IMAGES), load(tmp_path / "bgr.onnx").predict(IMAGES), atol=1e-2)


def test_integer_inputs_are_turned_before_they_are_rounded(tmp_path: Path) -> None:
    predictor = load(linear(tmp_path / "file.onnx", kind=TensorProto.UINT8), None, Interface(channel_order="bgr"))
    levels = np.round(IMAGES * 255)
    expected = np.einsum("kchw,nchw->nk", weights().astype(np.float64), levels[:, ::-1])
    assert np.allclose(predictor.predict((levels / 255).astype(np.float32)), expected, rtol=1e-4, atol=1e-3)
    assert any("blue, green, red" in note for note in predictor.notes)
    assert any("grey levels" in note for note in predictor.notes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("form", [".pt", ".pt2"])
@pytest.mark.parametrize("name", RANGES)
def test_programs_of_torch(name: str, form: str, tmp_path: Path) -> None:
    layer = nn.Linear(108, 4, bias=False)
    layer.weight.data = torch.from_numpy(weights().reshape(4, -1))
    net, example, path = nn.Sequential(nn.Flatten(), layer).eval(), torch.zeros(2, *SHAPE), tmp_path / f"file{form}"
    if form == ".pt":
        torch.jit.save(torch.jit.trace(net, example), path)
    else:
        torch.export.save(torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("n")},)), path)
    check(load(path, SHAPE, RANGES[name], trust=True), RANGES[name])


def test_refused_for_grey_images(tmp_path: Path) -> None:
    path = tmp_path / "file.onnx"
    linear(path, "flat nchw")
    with pytest.raises(UserError, match="--channel-order bgr needs images of 3 channels, these have 1"):
        load(path, (1, 12, 9), replace(RANGES["as is"], layout="nchw"))


def test_two_turns_are_none() -> None:
    turn = RANGES["as is"].preprocessing(3)
    x = torch.from_numpy(IMAGES)
    assert torch.equal(turn(turn(x)), x)
    assert torch.equal(turn(x)[:, 0], x[:, 2])
    assert len(AS_IS.preprocessing(3)) == 0  # type: ignore[arg-type]
