"""Inputs that say less than others: of no rank, without an axis for the batch, of 8 bits with their own meaning."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from small_graphs import FLAT, POOLED, SHAPE, graph, images, linear, runs, saved, weights

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.artifacts.preprocessing import Interface
from dgad_tk.common import UserError
from exporters.bench.describe import describe
from exporters.formats import load
from exporters.onnx_open.quantised_input import Levels, find_quantiser

KERNEL = np.random.default_rng(2).standard_normal((5, 3, 3, 3)).astype(np.float32)
CONV = [helper.make_node("Conv", ["x", "k"], ["c"]), *POOLED]
LAST = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), helper.make_node("Conv", ["t", "k"], ["c"])]
ONE = [helper.make_node("Flatten", ["x"], ["f"], axis=0), FLAT[1]]
ONE_CONV = [helper.make_node("Unsqueeze", ["x", "axis"], ["u"]), helper.make_node("Conv", ["u", "k"], ["c"]), *POOLED]
ONE_ROW = [*ONE_CONV[:-1], helper.make_node("Flatten", ["p"], ["r"]), helper.make_node("Squeeze", ["r", "axis"], ["y"])]


def agrees(predictor: Predictor, expected: np.ndarray, x: np.ndarray) -> None:
    """The runtime behind `predict` answers so, and the twin gives the same with gradients."""
    np.testing.assert_allclose(predictor.predict(x), expected, rtol=1e-5, atol=1e-5)
    assert predictor.module is not None
    pixels = torch.from_numpy(x).requires_grad_()
    logits = predictor.module(pixels)
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    (back,) = torch.autograd.grad(logits[:, 0].sum(), pixels)
    assert (back.reshape(len(x), -1).abs().max(dim=1).values > 0).all()


@pytest.mark.parametrize(
    ("nodes", "constants", "layout"),
    [
        (FLAT, {"w": weights()}, "nchw"),
        (CONV, {"k": KERNEL}, "nchw"),
        ([*LAST, *POOLED], {"k": KERNEL}, "nhwc"),
    ],
    ids=["flat", "channels first", "channels last"],
)
def test_the_images_say_the_shape_of_an_input_without_a_rank(
    nodes: list[Any], constants: dict[str, np.ndarray], layout: str, tmp_path: Path
) -> None:
    path, x = saved(graph(nodes, constants, shape=None), tmp_path / "any.onnx"), images()
    predictor = load(path, SHAPE)
    assert (predictor.input_shape, predictor.interface.layout) == (SHAPE, layout)
    agrees(predictor, runs(path, x if layout == "nchw" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))), x)
    assert any("leaves the number of its input's axes open" in note for note in predictor.notes)
    assert describe(path, SHAPE).sample == (SHAPE if layout == "nchw" else (8, 8, 3))
    with pytest.raises(UserError, match="leaves its input's shape open") as caught:
        load(path)
    assert "--dataset" in caught.value.hint
    with pytest.raises(UserError, match="leaves its input's shape open"):
        describe(path)


def test_the_layout_of_an_input_without_a_rank_can_be_given(tmp_path: Path) -> None:
    path, x = saved(linear(shape=None), tmp_path / "any.onnx"), images()
    agrees(load(path, SHAPE, Interface(layout="nhwc")), runs(path, np.ascontiguousarray(x.transpose(0, 2, 3, 1))), x)


def test_flat_images_for_an_input_without_a_rank(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "v"], ["y"])]
    path = saved(graph(nodes, {"v": weights()[:, :64].T.copy()}, shape=None), tmp_path / "any.onnx")
    x = images(shape=(1, 8, 8))
    agrees(load(path, (1, 8, 8)), runs(path, x.reshape(5, 64)), x)


def test_a_single_number_is_no_image_of_any_rank(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "one"], ["r"]), helper.make_node("MatMul", ["r", "v"], ["y"])]
    model = graph(nodes, {"one": np.int64([1, 1]), "v": weights()[:1, :4]}, shape=[])
    with pytest.raises(UserError, match="not an image classifier"):
        load(saved(model, tmp_path / "scalar.onnx"), SHAPE)


AXIS = {"axis": np.int64([0])}


@pytest.mark.parametrize(
    ("nodes", "constants", "shape", "form"),
    [
        (ONE, {"w": weights()}, [3, 8, 8], lambda x: x),
        (ONE, {"w": weights()}, [8, 8, 3], lambda x: x.transpose(1, 2, 0)),
        (ONE_CONV, {"k": KERNEL} | AXIS, [3, 8, 8], lambda x: x),
        (ONE_CONV, {"k": KERNEL} | AXIS, [3, "H", "W"], lambda x: x),
        (ONE_ROW, {"k": KERNEL} | AXIS, [3, 8, 8], lambda x: x),
    ],
    ids=["flat", "channels last", "convolution", "open size", "one row"],
)
def test_a_file_without_an_axis_for_the_batch_is_given_one_image_at_a_time(
    nodes: list[Any], constants: dict[str, np.ndarray], shape: list[Any], form: Callable[..., Any], tmp_path: Path
) -> None:
    path, x = saved(graph(nodes, constants, shape=shape), tmp_path / "alone.onnx"), images()
    expected = np.stack([runs(path, np.ascontiguousarray(form(each))).reshape(-1) for each in x])
    predictor = load(path, SHAPE)
    agrees(predictor, expected, x)
    assert predictor.batch == 1
    assert any("no axis for the batch" in note for note in predictor.notes)
    subject = describe(path, SHAPE)
    assert (subject.fixed_batch, subject.has_batch_axis, len(subject.sample)) == (1, False, 3)


@pytest.mark.parametrize(("shape", "layout"), [((1, 8, 8), None), (SHAPE, "nchw"), (SHAPE, "nhwc")])
def test_a_vector_of_pixels_is_one_image(shape: tuple[int, int, int], layout: Any, tmp_path: Path) -> None:
    pixels = int(np.prod(shape))
    path = saved(graph(ONE, {"w": weights()[:, :pixels]}, shape=[pixels]), tmp_path / "vector.onnx")
    x = images(shape=shape)
    order = (1, 2, 0) if layout == "nhwc" else (0, 1, 2)
    expected = np.concatenate([runs(path, np.ascontiguousarray(each.transpose(order)).reshape(-1)) for each in x])
    agrees(load(path, shape, Interface(layout=layout)), expected, x)
    if layout is not None:
        with pytest.raises(UserError, match="without an axis for the batch, and their pixels may be in the order of"):
            load(path, shape)
    with pytest.raises(UserError, match="not an image classifier") as caught:
        load(path)
    assert "--dataset" in caught.value.hint


def test_a_batch_of_three_grey_images_is_no_colour_image(tmp_path: Path) -> None:
    """(3, 8, 8) is either; the images decide."""
    path = saved(graph(FLAT, {"w": weights()[:, :64].copy()}, shape=[3, 8, 8]), tmp_path / "three.onnx")
    x = images(3, (1, 8, 8))
    predictor = load(path, (1, 8, 8))
    assert predictor.batch == 3
    agrees(predictor, runs(path, x[:, 0]), x)


LOWEST = {TensorProto.UINT8: 0, TensorProto.INT8: -128}
TYPES = {TensorProto.UINT8: np.uint8, TensorProto.INT8: np.int8}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def quantised(
    kind: int, scale: float, zero_point: int, *, nhwc: bool = False, operator: str = "DequantizeLinear"
) -> Any:
    """A classifier whose first operator says what the numbers of its 8-bit input stand for."""
    source, nodes = "x", []
    if nhwc:
        nodes.append(helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]))
        source = "t"
    constants = {"s": np.float32(scale), "z": TYPES[kind](zero_point), "k": KERNEL}
    if operator == "DequantizeLinear":
        nodes += [helper.make_node(operator, [source, "s", "z"], ["d"]), helper.make_node("Conv", ["d", "k"], ["c"])]
    elif operator == "QLinearConv":
        constants |= {"q": np.clip(np.rint(KERNEL / 0.03), -127, 127).astype(np.int8), "ks": np.float32(0.03)}
        constants |= {"kz": np.int8(0), "os": np.float32(0.1), "oz": TYPES[kind](LOWEST[kind] + 128)}
        nodes.append(helper.make_node(operator, [source, "s", "z", "q", "ks", "kz", "os", "oz"], ["i"]))
        nodes.append(helper.make_node("DequantizeLinear", ["i", "os", "oz"], ["c"]))
    else:
        constants |= {"q": np.clip(np.rint(KERNEL / 0.03), -127, 127).astype(np.int8), "kz": np.int8(0)}
        constants |= {"m": np.float32(0.03 * scale)}
        nodes.append(helper.make_node("ConvInteger", [source, "q", "z", "kz"], ["i"]))
        nodes += [helper.make_node("Cast", ["i"], ["i2"], to=1), helper.make_node("Mul", ["i2", "m"], ["c"])]
    return graph([*nodes, *POOLED], constants, shape=["N", 8, 8, 3] if nhwc else ["N", 3, 8, 8], kind=kind)


def numbers(x: np.ndarray, kind: int, scale: float, zero_point: int, interface: Interface) -> np.ndarray:
    """What ONNX's QuantizeLinear makes of the normalised images."""
    low, high = interface.input_range
    pixels = x * np.float32(high - low) + np.float32(low)
    mean, std = (np.float32(each).reshape(-1, 1, 1) for each in (interface.mean or (0,), interface.std or (1,)))
    steps = np.rint((pixels - mean) / std / np.float32(scale)) + zero_point
    return np.clip(steps, LOWEST[kind], LOWEST[kind] + 255).astype(TYPES[kind])


ASKED = [
    Interface(mean=MEAN, std=STD),
    Interface(input_range=(-1.0, 1.0)),
    Interface(input_range=(0.0, 255.0), mean=(123.7,), std=(58.0,)),
    Interface(std=(1.0,)),
]


@pytest.mark.parametrize("kind", TYPES, ids=["uint8", "int8"])
@pytest.mark.parametrize("operator", ["DequantizeLinear", "QLinearConv"])
@pytest.mark.parametrize("nhwc", [False, True])
def test_normalised_images_are_quantised_as_the_graph_says(
    kind: int, operator: str, nhwc: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale, zero_point = 0.0186, LOWEST[kind] + 114
    path = saved(quantised(kind, scale, zero_point, nhwc=nhwc, operator=operator), tmp_path / "q.onnx")
    x = images()
    for interface in ASKED:
        given = numbers(x, kind, scale, zero_point, interface)
        expected = runs(path, np.ascontiguousarray(given.transpose(0, 2, 3, 1)) if nhwc else given)
        predictor = load(path, None, interface)
        np.testing.assert_array_equal(predictor.predict(x), expected)
        assert predictor.module is not None
        with torch.no_grad():
            twin = predictor.module(torch.from_numpy(x)).numpy()
        step = 0.1 if operator == "QLinearConv" else 1e-4
        assert np.abs(twin - expected).max() <= step
        assert any("scale 0.0186 and zero point" in note for note in predictor.notes)
        assert not any("no grey levels" in note for note in predictor.notes)


def test_gradients_pass_the_quantiser_straight_and_stop_where_it_clips() -> None:
    levels = Levels(0.5, 3, 0, 255)
    x = torch.tensor([-1.6, -0.3, 0.26, 126.2, 126.4], requires_grad=True)
    found = levels(x)
    assert found.tolist() == [0, 2, 4, 255, 255]
    (back,) = torch.autograd.grad((found * torch.tensor([1.0, 2, 3, 4, 5])).sum(), x)
    assert back.tolist() == [2, 4, 6, 8, 0]  # -1.6 and 126.2 still round to the ends


@pytest.mark.parametrize("kind", TYPES, ids=["uint8", "int8"])
@pytest.mark.parametrize(
    ("scale", "offset", "grey"),
    [
        (1 / 255, 0, True),
        (1 / 256, 0, True),
        (1.0, 0, True),
        (0.0186, 114, False),
        (1 / 128, 128, False),
        (1 / 255, 128, False),
        (2 / 255, 0, False),
    ],
)
def test_grey_levels_are_given_and_doubted_where_the_numbers_mean_something_else(
    kind: int, scale: float, offset: int, grey: bool, tmp_path: Path
) -> None:
    zero_point = LOWEST[kind] + offset
    path, x = saved(quantised(kind, scale, zero_point), tmp_path / "q.onnx"), images()
    predictor = load(path)
    given = (np.rint(x * 255) + LOWEST[kind]).astype(TYPES[kind])
    agrees(predictor, runs(path, given), x)
    doubts = [note for note in predictor.notes if "no grey levels" in note]
    assert bool(doubts) is not grey
    assert all(f"scale {np.float32(scale):g} and zero point {zero_point}" in doubt for doubt in doubts)
    sure = load(path, None, Interface(input_range=(0.0, 255.0)))  # who names grey levels knows what he gives
    np.testing.assert_array_equal(sure.predict(x), predictor.predict(x))
    assert not any("no grey levels" in note for note in sure.notes)


@pytest.mark.parametrize(
    ("scale", "interface", "doubt"),
    [
        (1 / 255, Interface(mean=MEAN, std=STD), "pixels come to -2.12 to 2.64, and .* 0 to 1 .*the rest is clipped"),
        (1.0, Interface(std=(1.0,)), "pixels come to 0 to 1, .*few numbers are left"),
        (1 / 255, Interface(std=(1.0,)), ""),
    ],
)
def test_a_normalisation_that_does_not_fit_the_numbers_is_doubted(
    scale: float, interface: Interface, doubt: str, tmp_path: Path
) -> None:
    notes = load(saved(quantised(TensorProto.UINT8, scale, 0), tmp_path / "q.onnx"), None, interface).notes
    (said,) = [note for note in notes if "are --mean and --std right" in note] or [""]
    assert bool(said) is bool(doubt)
    assert re.search(doubt, said)


def test_integer_operators_without_a_scale_name_their_zero_point(tmp_path: Path) -> None:
    path, x = saved(quantised(TensorProto.UINT8, 0.02, 114, operator="ConvInteger"), tmp_path / "q.onnx"), images()
    predictor = load(path)
    np.testing.assert_array_equal(predictor.predict(x), runs(path, np.rint(x * 255).astype(np.uint8)))
    assert any("have no one scale and zero point 114" in note for note in predictor.notes)
    with pytest.raises(UserError, match="its graph names no scale for all of it"):
        load(path, None, Interface(mean=MEAN, std=STD))


def test_int8_without_a_quantiser_is_grey_levels_less_128(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["v"], to=1), helper.make_node("Conv", ["v", "k"], ["c"]), *POOLED]
    path, x = saved(graph(nodes, {"k": KERNEL}, kind=TensorProto.INT8), tmp_path / "cast.onnx"), images()
    predictor = load(path)
    agrees(predictor, runs(path, (np.rint(x * 255) - 128).astype(np.int8)), x)
    assert any("256 grey levels, less 128" in note for note in predictor.notes)


def found(nodes: list[Any], constants: dict[str, np.ndarray]) -> Any:
    quantiser = find_quantiser(graph(nodes, constants, kind=TensorProto.UINT8).graph, "x")
    return quantiser and (quantiser.scale, quantiser.zero_point)


def test_the_first_operator_that_takes_the_input_is_read() -> None:
    """Not one behind a computation, and none whose numbers differ from channel to channel."""
    one = {"s": np.float32(0.5), "z": np.uint8(3), "t": np.float32(0.25)}
    assert found([helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"])], one) == (0.5, 3)
    assert found([helper.make_node("DequantizeLinear", ["x", "s"], ["y"])], one) == (0.5, 0)
    constant = helper.make_node("Constant", [], ["s"], value=onnx.numpy_helper.from_array(np.float32(0.125)))
    assert found([constant, helper.make_node("DequantizeLinear", ["x", "s"], ["y"])], {}) == (0.125, 0)
    concat = helper.make_node("QLinearConcat", ["t", "z", "x", "s", "z"], ["y"], domain="com.microsoft", axis=1)
    assert found([concat], one) == (0.5, 3)
    added = helper.make_node("QLinearAdd", ["b", "t", "z", "x", "s", "z", "t", "z"], ["y"], domain="com.microsoft")
    assert found([added], one) == (0.5, 3)
    cast = helper.make_node("Cast", ["x"], ["v"], to=TensorProto.UINT8)
    assert found([cast, helper.make_node("DequantizeLinear", ["v", "s", "z"], ["y"])], one) is None
    channels = {"s": np.float32([0.5, 0.25, 0.1]), "z": np.uint8([3, 3, 3])}
    assert found([helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"])], channels) == (None, 3)
    channels["z"] = np.uint8([1, 2, 3])
    assert found([helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"])], channels) == (None, None)


@pytest.mark.parametrize("name", ["half", "training", "forward", "_buffers", "graph"])
def test_a_weight_may_have_the_name_of_something_that_modules_have(name: str, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", name], ["z"]), helper.make_node("Flatten", ["z"], ["f"]), FLAT[1]]
    model = graph(nodes, {"w": weights(), name: np.full((3, 1, 1), 0.5, np.float32)})
    path, x = saved(model, tmp_path / "named.onnx"), images()
    agrees(load(path), runs(path, x), x)
