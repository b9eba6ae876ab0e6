"""What is said of an ONNX file that does not open: the runtime judges, and each reason has its own words and hint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from small_graphs import FLAT, POOLED, SHAPE, graph, images, linear, runs, saved, weights

from cli import app
from dgad_tk.common import UserError
from exporters.bench.describe import describe
from exporters.formats import load
from exporters.onnx_read.bounds import check_bounds, inferred_types
from exporters.onnx_read.parts import Refused
from exporters.onnx_read.read import read_onnx, read_onnx_record

PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"


def refusal(path: Path, read: Callable[[Path], Any] = load) -> UserError:
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        (POINTER, "is a Git LFS pointer, not an ONNX model", "git lfs pull"),
        (PAGE, "is an HTML page, not an ONNX model", "download it again"),
        (b'{"error": "Access to model is restricted"}', "is a server's error message", "download it again"),
        (b"PK\x03\x04" + bytes(100), "it is a zip archive", ".pt"),
        (b"hello, world" * 50, "it cannot be decoded", "is it an ONNX model"),
    ],
)
def test_what_is_no_onnx_model_is_told_by_its_first_bytes(content: bytes, what: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    for read in (load, read_onnx, read_onnx_record, describe):
        said = refusal(tmp_path / "model.onnx", read)
        assert what in said.message
        assert hint in said.hint
        assert "cut short" not in str(said)


@pytest.mark.parametrize("content", [POINTER, PAGE])
@pytest.mark.parametrize("command", ["inspect", "bench", "attack --dataset digits --model", "train --teacher"])
def test_every_command_says_so(
    content: bytes, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(content)
    assert app.run([*command.split(), "model.onnx"]) == 2
    said = capsys.readouterr().err
    assert "Git LFS pointer" in said or "HTML page" in said
    assert "Traceback" not in said


def test_only_a_file_that_is_cut_short_is_called_so(tmp_path: Path) -> None:
    whole, path = linear().SerializeToString(), tmp_path / "model.onnx"
    for size in range(3, len(whole) - 1, 97):
        path.write_bytes(whole[:size])
        said = refusal(path)
        # One that ends between two fields is a model that lacks the rest, and nothing tells that it was longer.
        assert ("cut short" in said.hint) == ("ends within its" in said.message), said
        assert "ends within its" in said.message or size < 40
    for model in (graph(FLAT), linear(opsets={"": 99}), linear(opsets={"": 0}), graph([], {"w": weights()})):
        assert "cut short" not in str(refusal(saved(model, path)))
    large = linear()
    large.graph.initializer[0].dims[:] = [10**6, 10**6]
    assert "cut short" not in str(refusal(saved(large, path)))


def head(opset: int, *nodes: Any) -> Any:
    return helper.make_function("own", "Head", ["a", "b"], ["c"], list(nodes), [helper.make_opsetid("", opset)])


def calling(function: Any, opset: int) -> onnx.ModelProto:
    nodes = [FLAT[0], helper.make_node("Head", ["f", "w"], ["y"], domain="own")]
    return graph(nodes, {"w": weights()}, functions=[function], opsets={"": opset, "own": 1})


GEMM = helper.make_node("Gemm", ["a", "b"], ["c"], transB=1)


def twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])


def both_data(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].float_data.append(1.0)


def keys_twice(model: onnx.ModelProto) -> None:
    for value in "12":
        model.metadata_props.add(key="a", value=value)


def of_another_shape(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["N", 7]))


CHANGED: dict[str, Callable[[onnx.ModelProto], Any]] = {
    "no name of the graph": lambda model: model.graph.ClearField("name"),
    "weights that are no inputs in IR 3": lambda model: setattr(model, "ir_version", 3),
    "an output without a type": lambda model: model.graph.output[0].ClearField("type"),
    "a weight twice": twice,
    "metadata twice": keys_twice,
    "data in two fields": both_data,
    "a value of another shape than declared": of_another_shape,
}


@pytest.mark.parametrize("change", CHANGED)
def test_what_onnx_runtime_runs_is_not_refused_by_onnx_checker(change: str, tmp_path: Path) -> None:
    model = linear()
    CHANGED[change](model)
    path, x = saved(model, tmp_path / "model.onnx"), images()
    predictor = load(path)
    assert predictor.module is not None
    np.testing.assert_array_equal(predictor.predict(x), runs(path, x))
    np.testing.assert_allclose(predictor.module(torch.from_numpy(x)).numpy(), runs(path, x), rtol=1e-4, atol=1e-4)
    assert describe(path).complexity.multiply_adds == 4 * 192


@pytest.mark.parametrize(
    ("function", "opset"),
    [(head(11, GEMM), 17), (head(13, GEMM), 17), (head(17, GEMM), 11)],
)
def test_functions_mean_what_onnx_runtime_makes_of_them(function: Any, opset: int, tmp_path: Path) -> None:
    path, x = saved(calling(function, opset), tmp_path / "model.onnx"), images()
    predictor = load(path)
    assert predictor.module is not None
    np.testing.assert_allclose(predictor.module(torch.from_numpy(x)).numpy(), runs(path, x), rtol=1e-4, atol=1e-4)
    assert describe(path).complexity.multiply_adds == 4 * 192


@pytest.mark.parametrize(("named", "opset"), [(11, 17), (17, 11), (17, 17)])
def test_a_function_in_another_operator_set_than_it_names(named: int, opset: int, tmp_path: Path) -> None:
    """ONNX Runtime runs it in the model's. Softmax without an axis is over one axis there, or over three."""
    softmax = helper.make_node("Softmax", ["a"], ["c"])
    function = helper.make_function("own", "S", ["a"], ["c"], [softmax], [helper.make_opsetid("", named)])
    nodes = [helper.make_node("S", ["x"], ["c"], domain="own"), helper.make_node("Flatten", ["c"], ["f"]), FLAT[1]]
    model = graph(nodes, {"w": weights()}, functions=[function], opsets={"": opset, "own": 1})
    path, x = saved(model, tmp_path / "model.onnx"), 5 * images()
    predictor = load(path)
    assert predictor.module is not None
    np.testing.assert_allclose(predictor.module(torch.from_numpy(x)).numpy(), runs(path, x), rtol=1e-3, atol=1e-4)


def test_what_onnx_runtime_does_not_run_is_refused_in_its_words(tmp_path: Path) -> None:
    old = helper.make_function(
        "own", "Head", ["a", "b"], ["c"], [helper.make_node("Gemm", ["a", "b"], ["c"], odd=1)], []
    )
    said = refusal(saved(calling(old, 17), tmp_path / "model.onnx"))
    assert "ONNX Runtime cannot load" in said.message
    assert "/onnxruntime_src/" not in said.message
    assert onnxruntime.__version__ in said.hint


def test_a_node_that_onnx_cannot_infer_hides_nothing_of_the_others(tmp_path: Path) -> None:
    """Upsample is gone from this operator set, over which ONNX gives up; the terabytes beside it are seen still."""
    nodes = [
        helper.make_node("Upsample", ["x"], ["u"], scales=[1.0, 1.0]),
        helper.make_node("Constant", [], ["s"], value=onnx.numpy_helper.from_array(np.int64([10**12]))),
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("ReduceMax", ["c"], ["r"], keepdims=0),
        helper.make_node("Cast", ["r"], ["v"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["u", "v"], ["y"]),
    ]
    path = saved(graph(nodes), tmp_path / "model.onnx")
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    assert [dim.dim_value for dim in inferred_types(onnx.load(str(path)))["c"].tensor_type.shape.dim] == [10**12]
    with pytest.raises(Refused, match="'c' would take 3,725.3 GB"):
        check_bounds(onnx.load(str(path)), path)


def conv(size: int, **attributes: Any) -> tuple[list[Any], dict[str, np.ndarray]]:
    kernel = np.ones((4, 3, size, size), np.float32)
    return [helper.make_node("Conv", ["x", "k"], ["c"], **attributes), *POOLED], {"k": kernel}


def reshaped(*sizes: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["f"]), FLAT[1]]
    return nodes, {"s": np.int64(sizes), "w": np.ones((4, 768), np.float32)}


def pooled(**attributes: Any) -> tuple[list[Any], dict[str, np.ndarray]]:
    return [helper.make_node("AveragePool", ["x"], ["c"], **attributes), *POOLED], {}


def halved(times: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    names = ["x", *(f"m{at}" for at in range(times - 1)), "c"]
    pools = [
        helper.make_node("MaxPool", [names[at]], [names[at + 1]], kernel_shape=[2, 2], strides=[2, 2])
        for at in range(times)
    ]
    return [*pools, *POOLED], {}


SIZES: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "kernel larger than the image": conv(16),
    "dilated beyond the image": conv(3, dilations=[8, 8]),
    "weights for a larger image": (FLAT, {"w": np.ones((4, 3 * 224 * 224), np.float32)}),
    "reshape that does not fit": reshaped(-1, 768),
    "reshape to one image": reshaped(1, 768),
    "window larger than the image": pooled(kernel_shape=[9, 9]),
    "window that leaves nothing": pooled(kernel_shape=[16, 16], strides=[16, 16]),
    "halved until nothing is left": halved(5),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_graph_that_cannot_take_the_image_size_is_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved(graph(*SIZES[name], shape=["N", 3, "H", "W"]), tmp_path / "model.onnx")
    said = refusal(path, lambda path: load(path, SHAPE))
    assert "(3, 8, 8)" in said.message
    assert "--image-size" in said.hint
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("kernel", "inspect --dataset digits"),
        ("kernel", "bench --dataset digits"),
        ("kernel", "bench --robust --dataset digits"),
        ("kernel", "attack --dataset digits --attack fgsm --model"),
        ("kernel", "attack --dataset digits --suite blackbox --model"),
        ("window", "attack --dataset digits --attack fgsm --model"),
    ],
)
def test_every_command_says_that_images_are_too_small(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    kernel = {"k": np.ones((10, 1, 16, 16), np.float32)}
    nodes, constants = (conv(16)[0], kernel) if name == "kernel" else SIZES["window that leaves nothing"]
    if name == "window":  # ten classes of one channel
        constants = {"r": np.int64([1, 10, 1, 1])}
        nodes = [helper.make_node("Tile", ["x", "r"], ["t"]), *nodes]
        nodes[1] = helper.make_node("AveragePool", ["t"], ["c"], kernel_shape=[16, 16], strides=[16, 16])
    saved(graph(nodes, constants, shape=["N", 1, "H", "W"]), tmp_path / "model.onnx")
    assert app.run([*command.split(), "model.onnx"]) == 2
    said = capsys.readouterr().err
    assert "(1, 8, 8)" in said
    assert "--image-size" in said
    assert "Traceback" not in said
