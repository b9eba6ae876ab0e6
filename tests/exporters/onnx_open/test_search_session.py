"""What searches ask in place of a file of a fixed batch size. ONNX Runtime, run by hand on the file, is the judge."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from small_graphs import FLAT, POOLED, graph, images, linear, runs, saved, weights

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.common import UserError
from exporters.formats import load
from exporters.onnx_open import search_session
from exporters.onnx_open.open import NoGradients
from exporters.onnx_open.search_session import FREED
from exporters.onnx_open.session import Runtime

KERNEL = np.random.default_rng(2).standard_normal((5, 3, 3, 3)).astype(np.float32)
CONV = [helper.make_node("Conv", ["x", "k"], ["c"]), *POOLED]
SOFTMAX = [*CONV[:-1], helper.make_node("Flatten", ["p"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=1)]
LAST = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), helper.make_node("Conv", ["t", "k"], ["c"])]
GREY = [
    helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
    helper.make_node("Mul", ["f", "scale"], ["g"]),
    helper.make_node("Transpose", ["g"], ["t"], perm=[0, 3, 1, 2]),
    helper.make_node("Conv", ["t", "k"], ["c"]),
]


def asked_itself(predictor: Predictor, expected: np.ndarray, x: np.ndarray, reason: str) -> None:
    """Searches ask the file, and the notes say why."""
    assert predictor.search is None
    (note,) = (note for note in predictor.notes if note.startswith("searches ask"))
    assert note.startswith("searches ask the file itself, which takes long: ")
    assert reason in note
    np.testing.assert_allclose(predictor.predict(x), expected, rtol=1e-5, atol=1e-6)


def reshaped() -> list[Any]:
    """A pool, and a Reshape to `target`, in which the batch stands."""
    return [*CONV[:-1], helper.make_node("Reshape", ["p", "target"], ["y"])]


def fixed(nodes: list[Any], constants: dict[str, np.ndarray], batch: int, **more: Any) -> onnx.ModelProto:
    return graph(nodes, constants, shape=more.pop("shape", [batch, 3, 8, 8]), **more)


def one_by_one(path: Path, given: np.ndarray, batch: int) -> np.ndarray:
    """The file's answer to each image in a batch of its own."""
    return np.concatenate([runs(path, np.repeat(given[at : at + 1], batch, axis=0))[:1] for at in range(len(given))])


def agrees(predictor: Predictor, expected: np.ndarray, x: np.ndarray) -> None:
    """`search` gives what the file gives, for any number of images, and the notes say so."""
    assert predictor.search is not None
    for count in (1, 2, len(x)):
        found = predictor.search(x[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-5)
    assert FREED in predictor.notes


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize(
    ("nodes", "constants", "form"),
    [
        (FLAT, {"w": weights()}, "nchw"),
        (CONV, {"k": KERNEL}, "nchw"),
        (reshaped(), {"k": KERNEL, "target": np.int64([-2, 5])}, "nchw"),
        ([*LAST, *POOLED], {"k": KERNEL}, "nhwc"),
        ([*GREY, *POOLED], {"k": KERNEL, "scale": np.float32(1 / 255)}, "uint8"),
    ],
    ids=["linear", "convolution", "reshape", "channels last", "8 bits"],
)
def test_any_number_of_images_is_answered_as_the_file_answers_each(
    nodes: list[Any], constants: dict[str, np.ndarray], form: str, batch: int, tmp_path: Path
) -> None:
    constants = {
        name: np.where(value == -2, batch, value) if name == "target" else value for name, value in constants.items()
    }
    kind = TensorProto.UINT8 if form == "uint8" else TensorProto.FLOAT
    shape = [batch, 3, 8, 8] if form == "nchw" else [batch, 8, 8, 3]
    path, x = saved(fixed(nodes, constants, batch, shape=shape, kind=kind), tmp_path / "fixed.onnx"), images(11)
    given = x if form == "nchw" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    given = np.rint(given * 255).astype(np.uint8) if form == "uint8" else given
    predictor = load(path, (3, 8, 8))
    agrees(predictor, one_by_one(path, given, batch), x)
    np.testing.assert_array_equal(predictor.predict(x[:batch]), runs(path, given[:batch]))


def test_behind_a_softmax_the_answers_are_logarithms_of_the_files(tmp_path: Path) -> None:
    path, x = saved(fixed(SOFTMAX, {"k": KERNEL}, 1), tmp_path / "soft.onnx"), images(6)
    agrees(load(path), np.log(one_by_one(path, x, 1)), x)


def test_of_several_outputs_the_same_one_is_asked_for(tmp_path: Path) -> None:
    model = fixed([*CONV, helper.make_node("Neg", ["y"], ["logits"])], {"k": KERNEL}, 1)
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5]))
    path, x = saved(model, tmp_path / "two.onnx"), images(6)
    predictor = load(path)
    assert predictor.interface.logits_output == "logits"
    agrees(predictor, -one_by_one(path, x, 1), x)


class _Batches:
    """Calibration data for ONNX Runtime's quantiser."""

    def __init__(self) -> None:
        self.left: Iterator[dict[str, np.ndarray]] = iter([{"x": image[None]} for image in images(16)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def test_a_quantised_file_is_searched_on_the_graph_that_the_runtime_makes_of_it(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantFormat, quantize_static

    nodes = [
        *CONV[:2],
        helper.make_node("Reshape", ["p", "target"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"]),
    ]
    constants = {"k": KERNEL, "target": np.int64([1, 5]), "v": weights()[:, :5].T.copy()}
    source = saved(fixed(nodes, constants, 1), tmp_path / "float.onnx")
    path, x = tmp_path / "int8.onnx", images(20)
    quantize_static(str(source), str(path), _Batches(), quant_format=QuantFormat.QDQ)  # type: ignore[arg-type]
    predictor = load(path)
    assert predictor.precision == "int8"
    assert predictor.search is not None
    exact, found = one_by_one(path, x, 1), predictor.search(x)
    assert (np.abs(found - exact).max(axis=1) < 1e-5).mean() > 0.9  # integers add up exactly, but for a tie


MIXING = [
    helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
    helper.make_node("Mul", ["mean", "half"], ["less"]),
    helper.make_node("Sub", ["x", "less"], ["z"]),
    helper.make_node("Flatten", ["z"], ["f"]),
    helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
]


def test_a_graph_that_would_mix_the_images_of_a_batch_is_not_searched_on(tmp_path: Path) -> None:
    """With batch 1 it is a classifier like others; with its batch freed an image's answer would depend on the rest."""
    path, x = saved(fixed(MIXING, {"w": weights(), "half": np.float32(0.5)}, 1), tmp_path / "mixing.onnx"), images(7)
    expected = one_by_one(path, x, 1)
    asked_itself(load(path), expected, x, "its graph answers differently with another batch size")


def test_a_file_that_mixes_the_images_of_its_own_batch_is_asked_itself(tmp_path: Path) -> None:
    path, x = saved(fixed(MIXING, {"w": weights(), "half": np.float32(0.5)}, 4), tmp_path / "mixing.onnx"), images(4)
    predictor = load(path)
    assert predictor.search is None
    assert any("which takes long: its graph answers differently" in note for note in predictor.notes)
    np.testing.assert_array_equal(predictor.predict(x), runs(path, x))


def test_dynamic_quantisation_has_one_scale_for_a_batch(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    source, path = saved(linear(shape=[1, 3, 8, 8]), tmp_path / "float.onnx"), tmp_path / "dynamic.onnx"
    quantize_dynamic(str(source), str(path))
    x = images(7)
    asked_itself(load(path), one_by_one(path, x, 1), x, "quantises all images of a batch by one scale")


def test_a_graph_that_runs_with_its_own_batch_size_alone(tmp_path: Path) -> None:
    """It answers two images with the first one's logits."""
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["first"], axis=0),
        helper.make_node("Flatten", ["first"], ["f"]),
        FLAT[1],
    ]
    path, x = saved(fixed(nodes, {"w": weights(), "zero": np.int64([0])}, 1), tmp_path / "own.onnx"), images(7)
    asked_itself(load(path), one_by_one(path, x, 1), x, "its graph ")


def test_a_file_without_an_axis_for_the_batch(tmp_path: Path) -> None:
    alone = graph([helper.make_node("Flatten", ["x"], ["f"], axis=0), FLAT[1]], {"w": weights()}, shape=[3, 8, 8])
    path, x = saved(alone, tmp_path / "alone.onnx"), images(7)
    expected = np.concatenate([runs(path, each) for each in x])
    asked_itself(load(path, (3, 8, 8)), expected, x, "no axis for the batch")


@pytest.mark.parametrize("batch", [1, 3])
def test_a_black_box_needs_no_twin_for_it(batch: int, tmp_path: Path) -> None:
    """`Unique` is no operator of the twin."""
    nodes = [
        *CONV[:2],
        helper.make_node("Reshape", ["p", "target"], ["r"]),
        helper.make_node("Unique", ["k"], ["u"]),
        helper.make_node("ReduceMin", ["u"], ["least"], keepdims=0),
        helper.make_node("Add", ["r", "least"], ["y"]),
    ]
    path = saved(fixed(nodes, {"k": KERNEL, "target": np.int64([batch, 5])}, batch), tmp_path / "odd.onnx")
    with pytest.raises(NoGradients) as caught:
        load(path)
    x = images(7)
    agrees(caught.value.predictor, one_by_one(path, x, batch), x)


def test_files_that_need_none_have_none(tmp_path: Path) -> None:
    free = load(saved(linear(), tmp_path / "free.onnx"))
    assert free.search is None
    assert not any("searches" in note for note in free.notes)


def test_weights_that_take_much_of_the_memory_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(linear(shape=[1, 3, 8, 8]), tmp_path / "large.onnx")
    monkeypatch.setattr(search_session, "memory_limit", lambda: 8 * (weights().nbytes - 1))
    predictor = load(path)
    assert predictor.search is None
    assert any("too much memory" in note for note in predictor.notes)


def test_where_the_copy_fails_the_file_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = saved(linear(shape=[1, 3, 8, 8]), tmp_path / "fixed.onnx"), images(9)
    predictor = load(path)
    rows = Runtime.rows

    def short_of_memory(self: Runtime, given: np.ndarray, output: str) -> np.ndarray:
        if self.image.batch is None and len(given) > 4:
            raise UserError("no memory")
        return rows(self, given, output)

    monkeypatch.setattr(Runtime, "rows", short_of_memory)
    agrees(predictor, one_by_one(path, x, 1), x)


def test_the_file_answers_by_its_own_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`predict` gives the file one image at a time; `search` gives another session all of them."""
    asked: list[tuple[int, int]] = []

    class Spied(onnxruntime.InferenceSession):
        def run(self, outputs: Any, given: dict[str, np.ndarray], options: Any = None) -> Any:
            asked.append((id(self), len(next(iter(given.values())))))
            return super().run(outputs, given, options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Spied)
    predictor, x = load(saved(linear(shape=[1, 3, 8, 8]), tmp_path / "fixed.onnx")), images(6)
    assert predictor.search is not None
    asked.clear()
    predictor.predict(x)
    predictor.search(x)
    assert [size for _, size in asked] == [1] * 6 + [6]
    assert len({session for session, _ in asked[:6]}) == 1
    assert asked[0][0] != asked[6][0]


@pytest.mark.parametrize("end", ["Identity", "Sigmoid"])
def test_one_number_of_each_image_is_searched_on_as_two_classes(end: str, tmp_path: Path) -> None:
    nodes = [FLAT[0], helper.make_node("Gemm", ["f", "w"], ["g"], transB=1), helper.make_node(end, ["g"], ["y"])]
    path, x = saved(fixed(nodes, {"w": 0.1 * weights()[:1]}, 1), tmp_path / "one.onnx"), images(6)
    predictor = load(path)
    assert predictor.classes == 2
    agrees(predictor, np.concatenate([predictor.predict(each[None]) for each in x]), x)
