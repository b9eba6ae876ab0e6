"""ONNX classifiers as others export them. ONNX Runtime, run by hand on each file, is the judge, and the source module
of the gradients."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from shared import artifact
from torch import Tensor, nn

from dgad_tk.artifacts.predictor import Predictor, predictor_of_module
from dgad_tk.artifacts.preprocessing import Interface
from dgad_tk.common import UserError
from dgad_tk.data import Split
from dgad_tk.models import build_model
from evaluators.engine.evaluate import evaluate
from evaluators.plan.rows import plan
from evaluators.target.judge import compare_twin, judge
from exporters.formats import load
from exporters.onnx_open.free_batch import InParts, freed, place_batch
from exporters.onnx_open.readings.reading import Reading
from exporters.onnx_open.readings.squash import Squash
from exporters.onnx_read.read import read_onnx

pytestmark = pytest.mark.portable

SHAPE = (3, 8, 8)
CLASSES = 6


class ConvNet(nn.Module):
    """Sizes written into a view; GroupNorm, which the exporter makes of Reshapes; a shuffle of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.norm = nn.GroupNorm(4, 8)
        self.head = nn.Linear(16 * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.conv2(x)).view(n, -1))


class Transformer(nn.Module):
    """A class token joined to patches, and torch's attention, whose sizes have the batch in the middle."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.batch_first = batch_first
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        if not self.batch_first:
            x = x.transpose(0, 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x[:, 0] if self.batch_first else x[0])


class Windows(nn.Module):
    """Swin's way: windows become part of the batch and come back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(3, 8, 1), nn.Linear(16, 16), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)
        n = x.shape[0]
        x = x.view(n, 2, 4, 2, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(n * 4, 16, 8)
        x = torch.tanh(self.mix(x.transpose(1, 2))).transpose(1, 2)
        x = x.view(n, 2, 2, 4, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(n, 8, 8, 8)
        return self.head(x.mean(dim=(1, 2)))


class FirstOfBatch(nn.Module):
    """Takes the batch apart: right for one image, and no axis is left to tell images apart by."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x))[0].mean(dim=(1, 2)))[None]


class Wrapped(nn.Module):
    """`net` with something done to what goes in and what comes out."""

    def __init__(
        self,
        net: nn.Module,
        before: Callable[[Tensor], Any] = lambda x: x,
        after: Callable[[Tensor], Any] = lambda y: y,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.net(self.before(x)))


def write(net: nn.Module, example: Tensor, path: Path, *, opset: int = 13, **options: Any) -> Path:
    """By torch's older exporter, which most files in the world come from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), (example,), str(path), dynamo=False, opset_version=opset, **options)
    return path


DYNAMIC: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}


def images(count: int, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *shape), dtype=np.float32)


def run(path: Path, *batches: np.ndarray) -> np.ndarray:
    """ONNX Runtime's first output for these batches as they are, one after another."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate(
        [np.asarray(session.run(None, {name: batch})[0]).reshape(len(batch), -1) for batch in batches]
    )


def singly(path: Path, x: np.ndarray) -> np.ndarray:
    return run(path, *(x[at : at + 1] for at in range(len(x))))


def logits(predictor: Predictor, x: np.ndarray) -> np.ndarray:
    assert predictor.module is not None
    with torch.no_grad():
        return predictor.module(torch.from_numpy(x)).numpy()


def gradient(module: nn.Module, x: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(x).requires_grad_()
    loss = F.cross_entropy(module(pixels), torch.arange(len(x)) % CLASSES, reduction="sum")
    return torch.autograd.grad(loss, pixels)[0].numpy()


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


NETS: dict[str, Callable[[], nn.Module]] = {
    "conv": ConvNet,
    "batch-first": lambda: Transformer(True),
    "sequence-first": lambda: Transformer(False),
    "windows": Windows,
}


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("name", NETS)
def test_the_twin_of_a_fixed_batch_takes_any(name: str, batch: int, tmp_path: Path) -> None:
    net = NETS[name]()
    path = write(net, torch.zeros(batch, *SHAPE), tmp_path / "fixed.onnx", opset=13 if name == "conv" else 17)
    predictor = load(path)
    assert isinstance(predictor.module, torch.fx.GraphModule)
    for count in (1, 3, 8):
        x = images(count)
        alone = run(path, *(np.repeat(x[at : at + 1], batch, axis=0) for at in range(count)))[::batch]
        assert_near(logits(predictor, x), alone)
        assert_near(gradient(predictor.module, x), gradient(net, x), 1e-4)
    assert any("at a time, as the file demands" in note for note in predictor.notes)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", NETS)
def test_the_graph_of_a_fixed_batch_is_rewritten_for_any(name: str, batch: int, tmp_path: Path) -> None:
    """ONNX Runtime gives for all images at once what it gives for each in a batch of its own."""
    fixed = write(NETS[name](), torch.zeros(batch, *SHAPE), tmp_path / "fixed.onnx", opset=17)
    free, _ = freed(read_onnx(fixed), (batch, *SHAPE))
    onnx.checker.check_model(free, full_check=True)
    onnx.save(free, str(tmp_path / "free.onnx"))
    x = images(7)
    alone = run(fixed, *(np.repeat(x[at : at + 1], batch, axis=0) for at in range(7)))[::batch]
    assert_near(run(tmp_path / "free.onnx", x), alone)
    assert_near(run(tmp_path / "free.onnx", x[:1]), alone[:1])


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_answered_by_the_file_as_it_is(batch: int, tmp_path: Path) -> None:
    path = write(ConvNet(), torch.zeros(batch, *SHAPE), tmp_path / "fixed.onnx")
    predictor, x = load(path), images(7)
    padded = np.concatenate([x, np.repeat(x[-1:], -7 % batch, axis=0)])
    expected = run(path, *(padded[at : at + batch] for at in range(0, len(padded), batch)))[:7]
    np.testing.assert_array_equal(predictor.predict(x), expected)
    np.testing.assert_array_equal(predictor.predict(x[:1]), expected[:1] if batch == 1 else predictor.predict(x)[:1])


@pytest.mark.parametrize("maps", [True, False])
def test_a_graph_that_cannot_be_freed_still_attacks(
    maps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not maps:

        def refuses(module: nn.Module) -> None:
            raise RuntimeError("no batching rule")

        monkeypatch.setattr(torch, "vmap", refuses)
    net = FirstOfBatch()
    path = write(net, torch.zeros(1, *SHAPE), tmp_path / "first.onnx")
    predictor, x = load(path), images(5)
    assert isinstance(predictor.module, InParts)
    assert predictor.module.mapped == maps
    assert any("which is slow" in note for note in predictor.notes) != maps
    assert_near(logits(predictor, x), singly(path, x))
    each = [gradient(Wrapped(net, after=lambda y, at=at: y.roll(-at, 1)), x[at : at + 1]) for at in range(5)]
    assert_near(gradient(predictor.module, x), np.concatenate(each), 1e-4)


@pytest.mark.parametrize(
    ("target", "batch", "ahead", "expected"),
    [
        ((1, 512), 1, 1, (0, 1)),
        ((4, 512), 4, 1, (0, 1)),
        ((64, 49, 96), 1, 1, (0, 1)),  # windows join the batch
        ((17, 12, 64), 1, 17, (1, 1)),  # heads do, behind a sequence
        ((17, 16), 1, 17, (0, 17)),
        ((51, 16), 3, 17, (0, 17)),
        ((17, 1, 16), 1, 17, (1, 1)),
        ((7, 5), 1, 3, None),
    ],
)
def test_where_images_are_counted(
    target: tuple[int, ...], batch: int, ahead: int, expected: tuple[int, int] | None
) -> None:
    assert place_batch(target, batch, ahead) == expected


def test_a_batch_size_that_is_only_declared_to_be_free(tmp_path: Path) -> None:
    """The commonest mistake: dynamic axes are named, and the sizes of one image stand in the graph all the same."""
    net = ConvNet()
    path = write(net, torch.zeros(1, *SHAPE), tmp_path / "fixed.onnx")
    proto = onnx.load(str(path))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(proto, str(path))
    predictor, x = load(path), images(5)
    np.testing.assert_array_equal(predictor.predict(x), singly(path, x))
    assert_near(logits(predictor, x), singly(path, x))


def test_parts_of_a_batch_are_filled_up() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 2
            return x.flatten(1)

    x = torch.rand(5, 1, 1, 3, requires_grad=True)
    for mapped in (False, True):
        result = InParts(Two(), 2, mapped=mapped)(x)
        torch.testing.assert_close(result, x.flatten(1))
        (back,) = torch.autograd.grad(result.sum(), x)
        assert (back == 1).all()


def nhwc(net: nn.Module) -> nn.Module:
    return Wrapped(net, before=lambda x: x.permute(0, 3, 1, 2))


@pytest.mark.parametrize("options", [{}, DYNAMIC], ids=["fixed", "dynamic"])
def test_channels_last(options: dict[str, Any], tmp_path: Path) -> None:
    net = ConvNet()
    path = write(nhwc(net), torch.zeros(1, 8, 8, 3), tmp_path / "nhwc.onnx", **options)
    predictor, x = load(path), images(4)
    assert (predictor.input_shape, predictor.interface.layout) == (SHAPE, "nhwc")
    expected = singly(path, np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    assert_near(predictor.predict(x), expected)
    assert_near(logits(predictor, x), expected)
    assert predictor.module is not None
    assert_near(gradient(predictor.module, x), gradient(net, x), 1e-4)


@pytest.mark.parametrize(
    ("declared", "known", "expected"),
    [
        ([1, 28, 28], None, ("nchw", (1, 28, 28))),
        ([28, 28, 1], None, ("nhwc", (1, 28, 28))),
        ([224, 224, 3], None, ("nhwc", (3, 224, 224))),
        ([13, 64, 64], None, ("nchw", (13, 64, 64))),
        ([3, 4, 4], None, ("nchw", (3, 4, 4))),
        ([4, 4, 3], None, ("nhwc", (3, 4, 4))),
        ([3, 2, 4], (4, 3, 2), ("nhwc", (4, 3, 2))),
        (["h", "w", 3], (3, 32, 32), ("nhwc", (3, 32, 32))),
        ([3, "h", "w"], (3, 32, 32), ("nchw", (3, 32, 32))),
        ([3, "h", "w"], None, "leaves its input's shape open"),
        ([3, 2, 4], None, "the channels may be the first of these or the last"),
        ([3, 3, 3], (3, 3, 3), "the channels may be the first of these or the last"),
    ],
)
def test_which_axis_the_channels_are(
    declared: list[Any], known: tuple[int, int, int] | None, expected: Any, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3]),
        helper.make_node("Concat", ["m", "m"], ["y"], axis=1),
    ]
    path = save(tmp_path / "mean.onnx", nodes, [tensor("x", ["n", *declared])], [tensor("y", ["n", None])])
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            load(path, known)
        asked: Any = "nchw" if "h" in declared else "nhwc"
        assert load(path, known or (3, 5, 6), Interface(layout=asked)).interface.layout == asked
    else:
        predictor = load(path, known)
        assert (predictor.interface.layout, predictor.input_shape) == expected


def tensor(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def save(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, np.ndarray] | None = None
) -> Path:
    constants = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    return path


@pytest.mark.parametrize("form", [(1, 64, 1), (1, 64), (1, 8, 8), (1, 1, 1, 64)])
def test_flat_grey_images(form: tuple[int, ...], tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    path = write(net, torch.zeros(form), tmp_path / "flat.onnx")
    predictor, x = load(path, (1, 8, 8)), images(3, (1, 8, 8))
    expected = singly(path, x.reshape(3, *form[1:]))
    assert_near(predictor.predict(x), expected)
    assert_near(logits(predictor, x), expected)
    assert predictor.module is not None
    assert_near(gradient(predictor.module, x), gradient(net, x), 1e-4)
    if form != (1, 1, 1, 64):
        with pytest.raises(UserError, match="not an image classifier"):
            load(path, (1, 9, 9))
    if form == (1, 64):
        with pytest.raises(UserError, match="not an image classifier"):
            load(path)


def test_flat_colour_images_have_two_orders(tmp_path: Path) -> None:
    net = nn.Linear(192, CLASSES)
    path = write(net, torch.zeros(2, 192), tmp_path / "flat.onnx", **DYNAMIC)
    x = images(3)
    with pytest.raises(UserError, match=r"may be in the order of \(C, H, W\) or of \(H, W, C\)"):
        load(path, SHAPE)
    for layout, order in (("nchw", (0, 1, 2, 3)), ("nhwc", (0, 2, 3, 1))):
        predictor = load(path, SHAPE, Interface(layout=layout))  # type: ignore[arg-type]
        expected = run(path, np.ascontiguousarray(x.transpose(order)).reshape(3, 192))
        assert_near(predictor.predict(x), expected)
        assert_near(logits(predictor, x), expected)


def test_grey_levels(tmp_path: Path) -> None:
    """uint8: what is judged is the nearest level; gradients are those of the network on the levels."""
    net = ConvNet()
    levels = Wrapped(nhwc(net), before=lambda x: x.float() / 255)
    path = write(levels, torch.zeros(1, 8, 8, 3, dtype=torch.uint8), tmp_path / "uint8.onnx")
    predictor, x = load(path), images(4)
    rounded = np.rint(x * 255).astype(np.uint8)
    expected = singly(path, np.ascontiguousarray(rounded.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(predictor.predict(x), expected)
    assert_near(logits(predictor, x), expected)
    assert predictor.module is not None
    assert_near(gradient(predictor.module, x), gradient(net, rounded / np.float32(255)), 1e-4)
    assert any("256 grey levels" in note for note in predictor.notes)
    with pytest.raises(UserError, match="takes uint8"):
        load(path, None, Interface(mean=(0.5,)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    net = (ConvNet() if dtype is torch.float16 else linear).to(dtype)  # ONNX Runtime has no convolution in double
    path = write(net, torch.zeros(1, *SHAPE, dtype=dtype), tmp_path / "floats.onnx")
    predictor, x = load(path), images(4)
    expected = singly(path, x.astype(str(dtype).removeprefix("torch.")))
    found = predictor.predict(x)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    tolerance = 1e-2 if dtype is torch.float16 else 1e-5
    assert_near(logits(predictor, x), expected.astype(np.float32), tolerance)
    assert predictor.module is not None
    assert_near(gradient(predictor.module, x), gradient(net.float(), x), tolerance)


CONFIDENT = 40.0
"""Logits times this leave float32 probabilities of 0 and 1."""


@pytest.mark.parametrize("scale", [1.0, CONFIDENT])
@pytest.mark.parametrize("final", [nn.Softmax(1), nn.Sigmoid()], ids=["softmax", "sigmoid"])
def test_gradients_come_from_before_the_final_squash(final: nn.Module, scale: float, tmp_path: Path) -> None:
    net = Wrapped(ConvNet(), after=lambda y: y * scale)
    path = write(Wrapped(net, after=lambda y: final(y).clone()), torch.zeros(1, *SHAPE), tmp_path / "soft.onnx")
    predictor, x = load(path), images(16)
    answers = singly(path, x)
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    assert_near(logits(predictor, x), expected)
    assert predictor.module is not None
    assert_near(gradient(predictor.module, x), gradient(net, x), 1e-4)
    found = predictor.predict(x)
    np.testing.assert_array_equal(found.argmax(axis=1), answers.argmax(axis=1))
    np.testing.assert_allclose(np.exp(found), answers, atol=1e-6)
    # Gradients of the file's own answer would have vanished where it is sure of itself.
    assert (np.abs(gradient(predictor.module, x)).reshape(16, -1).max(axis=1) > 0).all()
    assert any(f"before the final {type(final).__name__}" in note for note in predictor.notes)
    assert predictor.finish is not None
    split = Split((x * 255).astype(np.uint8), np.arange(16), np.zeros(16, dtype=np.int64))
    twin = compare_twin(predictor, split, np.ones(16, np.bool_), 16)
    assert twin.max_abs_diff <= 1e-4 * np.abs(found).max()
    assert (found < 0).all()  # logarithms, not probabilities


def test_small_answers_of_a_sigmoid_are_inexact(tmp_path: Path) -> None:
    """ONNX Runtime's is off by 1e-7 whatever its size, a tenth of an answer of 1e-6; another function is told apart."""
    net = Wrapped(ConvNet(), after=lambda y: torch.sigmoid(CONFIDENT * (y - y.mean(1, keepdim=True)) - 14))
    predictor, x = load(write(net, torch.zeros(1, *SHAPE), tmp_path / "small.onnx")), images(16)
    split, every = Split((x * 255).astype(np.uint8), np.arange(16), np.zeros(16, dtype=np.int64)), np.ones(16, np.bool_)
    answers = np.exp(predictor.predict(x))
    assert 0 < (answers < 1e-5).mean() < 1
    assert compare_twin(predictor, split, every, 16).argmax_agreement == 1
    module = predictor.module
    assert module is not None
    other = replace(predictor, module=Wrapped(module, after=lambda y: 1.05 * y))
    with pytest.raises(UserError, match="differs from the runtime"):
        compare_twin(other, split, every, 16)


def test_a_softmax_behind_axes_of_size_one(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Softmax(1))
    path = write(net, torch.zeros(1, *SHAPE), tmp_path / "conv.onnx")
    predictor, x = load(path), images(3)
    assert predictor.finish is not None
    assert_near(np.exp(predictor.predict(x)), singly(path, x))
    assert_near(logits(predictor, x), net[:2](torch.from_numpy(x)).detach().flatten(1).numpy())


def test_a_softmax_over_something_else_is_part_of_the_network(tmp_path: Path) -> None:
    net = Wrapped(ConvNet(), after=lambda y: y.reshape(-1, 2, 3).softmax(1).reshape(-1, 6))
    path = write(net, torch.zeros(1, *SHAPE), tmp_path / "odd.onnx")
    predictor, x = load(path), images(3)
    assert predictor.finish is None
    np.testing.assert_array_equal(predictor.predict(x), singly(path, x))
    assert_near(logits(predictor, x), singly(path, x))


def test_a_final_log_softmax_stays(tmp_path: Path) -> None:
    path = write(Wrapped(ConvNet(), after=lambda y: y.log_softmax(1)), torch.zeros(1, *SHAPE), tmp_path / "log.onnx")
    predictor, x = load(path), images(3)
    assert any("log-probabilities" in note for note in predictor.notes)
    assert_near(logits(predictor, x), singly(path, x))


def test_the_verdict_is_the_files_own_to_the_last_bit() -> None:
    """Neighbouring probabilities whose logarithms are one number, ties, zeros, and what is no number."""
    low = np.float32(0.01)
    high = np.nextafter(low, np.float32(1))
    answers = np.array([[low, high, 0], [high, low, 0], [high, high, 0], [0, 0, 1], [np.nan, 1, 0]], dtype=np.float32)
    assert np.log(low) == np.log(high)
    found = Squash("z", "Softmax").logits_of(answers)
    np.testing.assert_array_equal(found.argmax(axis=1), answers.argmax(axis=1))
    np.testing.assert_array_equal(np.isfinite(found).all(axis=1), [True] * 4 + [False])
    double = np.array([[0.5 - 1e-12, 0.5 + 1e-12], [1 - 1e-12, 1e-12]])
    for reading in (Squash("z", "Softmax"), Reading("z")):
        np.testing.assert_array_equal(reading.logits_of(double).argmax(axis=1), [1, 0])
    many = np.random.default_rng(0).dirichlet(np.ones(10), 2000).astype(np.float32)
    many[:1000, 3] = np.nextafter(many[:1000].max(axis=1), np.float32(1))
    np.testing.assert_array_equal(Squash("z", "Softmax").logits_of(many).argmax(axis=1), many.argmax(axis=1))


@pytest.mark.parametrize("steps_are_nodes", [False, True])
def test_quantised_probabilities(steps_are_nodes: bool, tmp_path: Path) -> None:
    """INT8 with the Softmax inside, quantised to steps of 1/256, and a fixed batch."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    net = Wrapped(ConvNet(), after=lambda y: (4 * y).softmax(1))
    source = write(net, torch.zeros(1, *SHAPE), tmp_path / "float.onnx")
    name = onnx.load(str(source)).graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter({name: x[None]} for x in images(16))

        def get_next(self) -> Any:
            return next(self.left, None)

    quantize_static(str(source), str(tmp_path / "int8.onnx"), Reader(), quant_format=QuantFormat.QDQ)
    if steps_are_nodes:
        model = onnx.load(tmp_path / "int8.onnx")
        nodes = [helper.make_node("Constant", [], [each.name], value=each) for each in model.graph.initializer]
        nodes += model.graph.node
        model.graph.ClearField("initializer")
        model.graph.ClearField("node")
        model.graph.node.extend(nodes)
        onnx.save(model, tmp_path / "int8.onnx")
    predictor, x = load(tmp_path / "int8.onnx"), images(12, seed=1)
    answers = singly(tmp_path / "int8.onnx", x)
    assert len(np.unique(answers)) <= 256
    np.testing.assert_array_equal(predictor.predict(x).argmax(axis=1), answers.argmax(axis=1))
    assert predictor.finish is not None
    found = predictor.finish(torch.from_numpy(logits(predictor, x)))
    assert np.abs(found.exp().numpy() - answers).max() <= 0.02
    assert predictor.module is not None
    assert (np.abs(gradient(predictor.module, x)).reshape(12, -1).max(axis=1) > 0).all()


def two_headed(names: list[str], after: Callable[[Tensor], Any], path: Path) -> Path:
    return write(Wrapped(ConvNet(), after=after), torch.zeros(1, *SHAPE), path, output_names=names)


def test_which_output_the_logits_are(tmp_path: Path) -> None:
    path, x = tmp_path / "two.onnx", images(3)

    def chosen(names: list[str], after: Callable[[Tensor], Any], asked: str | None = None) -> str | None:
        predictor = load(two_headed(names, after, path), None, Interface(logits_output=asked))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        given = [session.run([predictor.interface.logits_output], {session.get_inputs()[0].name: x[:1]})[0]]
        if predictor.finish is None:
            np.testing.assert_array_equal(predictor.predict(x[:1]), np.asarray(given[0]).reshape(1, -1))
        assert any("the logits are the output" in note for note in predictor.notes)
        return predictor.interface.logits_output

    assert chosen(["features", "logits"], lambda y: (y.sin(), y * 2)) == "logits"
    assert chosen(["embedding", "probabilities"], lambda y: (y.sin(), y.softmax(1))) == "probabilities"
    assert chosen(["p", "z"], lambda y: (y.softmax(1), y + 0)) == "z"
    assert chosen(["label", "p"], lambda y: (y.argmax(1), y.softmax(1))) == "p"
    assert chosen(["map", "z"], lambda y: (y[:, :, None].repeat(1, 1, 2), y + 0)) == "z"
    assert chosen(["a", "b"], lambda y: (y + 0, y.sin()), "b") == "b"
    with pytest.raises(UserError, match="has 2 outputs that may be the logits: a: .*, b: .*--logits-output"):
        chosen(["a", "b"], lambda y: (y + 0, y.sin()))
    with pytest.raises(UserError, match="no output 'c' of logits.*--logits-output a or b"):
        chosen(["a", "b"], lambda y: (y + 0, y.sin()), "c")
    with pytest.raises(UserError, match="is not a classifier: expected logits"):
        chosen(["label", "map"], lambda y: (y.argmax(1), y[:, :, None].repeat(1, 1, 2)))
    one = load(two_headed(["label", "one"], lambda y: (y.argmax(1), y[:, :1]), path))  # for two classes
    assert (one.one_number, one.interface.logits_output) == (True, "one")


def test_a_classifier_of_scikit_learns_converter(tmp_path: Path) -> None:
    """Labels and a list of dictionaries."""
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", "raw"],
            domain="ai.onnx.ml",
            coefficients=[0.1] * 128,
            intercepts=[0.0, 0.1],
            classlabels_ints=[0, 1],
            post_transform="SOFTMAX",
        ),
        helper.make_node("ZipMap", ["raw"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
    ]
    label = tensor("label", ["n"], TensorProto.INT64)
    maps = helper.make_value_info(
        "maps",
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        ),
    )
    path = save(tmp_path / "sklearn.onnx", nodes, [tensor("x", ["n", 64])], [label, maps])
    with pytest.raises(UserError, match="is not a classifier.*without ZipMap"):
        load(path, (1, 8, 8))
    path = save(tmp_path / "plain.onnx", nodes[:1], [tensor("x", ["n", 64])], [label, tensor("raw", ["n", 2])])
    with pytest.raises(UserError, match="LinearClassifier"):
        load(path, (1, 8, 8))


INTERFACES = [
    (Interface(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), (0.0, 1.0)),
    (Interface(mean=(0.5,)), (0.0, 1.0)),
    (Interface(input_range=(0, 255)), (0.0, 255.0)),
    (Interface(input_range=(-1, 1)), (-1.0, 2.0)),
    (Interface(input_range=(0, 255), mean=(123.7, 116.3, 103.5), std=(58.4,)), (0.0, 255.0)),
]


@pytest.mark.parametrize(("interface", "affine"), INTERFACES)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_what_a_file_expects_outside(
    interface: Interface, affine: tuple[float, float], layout: str, tmp_path: Path
) -> None:
    net = ConvNet()
    last = layout == "nhwc"
    example = torch.zeros(2, 8, 8, 3) if last else torch.zeros(2, *SHAPE)
    path = write(nhwc(net) if last else net, example, tmp_path / "net.onnx", **DYNAMIC)
    mean = torch.tensor(interface.mean or (0.0,)).reshape(1, -1, 1, 1)
    std = torch.tensor(interface.std or (1.0,)).reshape(1, -1, 1, 1)
    low, width = affine
    prepared = Wrapped(net, before=lambda x: (low + width * x - mean) / std)
    predictor, x = load(path, None, interface), images(4)
    fed = prepared.before(torch.from_numpy(x)).numpy()
    expected = run(path, np.ascontiguousarray(fed.transpose(0, 2, 3, 1)) if last else fed)
    assert_near(predictor.predict(x), expected)
    assert_near(logits(predictor, x), expected)
    assert predictor.notes[0].startswith("for the file, pixels are ")
    assert predictor.module is not None
    assert_near(gradient(predictor.module, x), gradient(prepared, x), 1e-4)


def test_a_module_that_expects_its_images_normalised() -> None:
    net, x = ConvNet().eval(), images(3)
    interface = Interface(mean=(0.5,), std=(0.25,))
    predictor = predictor_of_module(copy.deepcopy(net), SHAPE, format="torchscript", interface=interface)
    with torch.no_grad():
        expected = net((torch.from_numpy(x) - 0.5) / 0.25).numpy()
    assert_near(predictor.predict(x), expected)
    assert_near(logits(predictor, x), expected)
    with pytest.raises(UserError, match="is no ONNX file"):
        predictor_of_module(net, SHAPE, format="torchscript", interface=Interface(layout="nhwc"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": (0.5, 0.5)}, "--mean gives 2 values, the images have 3 channels"),
        ({"std": (0.5, 0.5)}, "--std gives 2 values, the images have 3 channels"),
        ({"std": (0.0,)}, "--std must be above 0"),
        ({"mean": (float("nan"),)}, "--mean must lie in the range"),
        ({"mean": (123.7,)}, "--mean must lie in the range of the input, 0 to 1, got 123.7"),
        ({"input_range": (1.0, 0.0)}, "--input-range must rise"),
        ({"input_range": (0.0, float("inf"))}, "--input-range must rise"),
    ],
)
def test_what_cannot_be_meant(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(ConvNet(), torch.zeros(1, *SHAPE), tmp_path / "net.onnx")
    with pytest.raises(UserError, match=message):
        load(path, None, Interface(**given))


def test_a_file_that_says_what_it_takes_is_not_contradicted(weights: Path) -> None:
    assert load(weights).interface == Interface()
    for given in ({"mean": (0.5,)}, {"input_range": (0.0, 255.0)}, {"layout": "nhwc"}):
        with pytest.raises(UserError, match="carries a dgad record"):
            load(weights, None, Interface(**given))  # type: ignore[arg-type]
    module = build_model("resnet8", in_channels=1, classes=10)
    with pytest.raises(UserError, match="carries a dgad record"):
        predictor_of_module(module, (1, 8, 8), format="x", artifact=artifact(), interface=Interface(std=(0.5,)))


def test_evaluations_with_different_normalisation_share_nothing(tmp_path: Path) -> None:
    path = write(ConvNet(), torch.zeros(2, *SHAPE), tmp_path / "net.onnx", **DYNAMIC)
    pixels = np.random.default_rng(3).integers(0, 256, (24, *SHAPE), dtype=np.uint8)
    rows = plan(["fgsm"], norm="linf", eps=[8 / 255])

    def evaluated(interface: Interface, store: Path | None) -> Any:
        predictor = load(path, None, interface)
        labels = judge(predictor, pixels / np.float32(255), 24).predicted
        split = Split(pixels, np.arange(24), np.zeros(24, dtype=np.int64) + labels[0])
        return evaluate(predictor, split, rows, store=store).outcomes[0].unit

    other = Interface(mean=(0.4,), std=(0.1,))
    evaluated(Interface(), tmp_path / "units")
    first = {each.name for each in (tmp_path / "units").iterdir()}
    stored, fresh = evaluated(other, tmp_path / "units"), evaluated(other, None)
    assert {each.name for each in (tmp_path / "units").iterdir()} > first
    np.testing.assert_array_equal(stored.broken, fresh.broken)
    np.testing.assert_array_equal(stored.adv_pred, fresh.adv_pred)


def test_several_inputs_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    shape = ["n", *SHAPE]
    path = save(tmp_path / "two.onnx", nodes, [tensor("x", shape), tensor("z", shape)], [tensor("y", shape)])
    with pytest.raises(UserError, match="not an image classifier: it takes x: .*, z: "):
        load(path)


def test_a_record_that_contradicts_the_graph_is_refused(tmp_path: Path) -> None:
    path = write(ConvNet(), torch.zeros(2, *SHAPE), tmp_path / "net.onnx", **DYNAMIC)
    model = onnx.load(path)
    for shape, contradicted in (((1, 8, 8), True), ((8, 8, 3), True), (SHAPE, False)):
        record = artifact(shape=shape, classes=list("abcdef"))
        helper.set_model_props(model, {"dgad": record.to_json()})
        onnx.save(model, path)
        if contradicted:
            with pytest.raises(UserError, match=r"takes images of \(3, 8, 8\), its metadata record says"):
                load(path)
        else:
            assert load(path).artifact == record


def test_known_images_that_a_half_open_shape_rules_out(tmp_path: Path) -> None:
    path = write(ConvNet(), torch.zeros(2, *SHAPE), tmp_path / "net.onnx", **DYNAMIC)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "c"
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"takes images of \(any, 8, 8\) \(C, H, W\), not of \(3, 16, 16\)"):
        load(path, (3, 16, 16))
    assert load(path, SHAPE).input_shape == SHAPE


def test_an_output_of_unknown_shape(tmp_path: Path) -> None:
    """ONNX's checker refuses what ONNX Runtime runs and converters write."""
    path = write(ConvNet(), torch.zeros(2, *SHAPE), tmp_path / "net.onnx", **DYNAMIC)
    model, x = onnx.load(path), images(3)
    expected = run(path, x)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    assert_near(logits(load(path), x), expected)


@pytest.mark.parametrize("values", [True, False])
def test_the_best_few_of_a_network_are_no_logits(values: bool, tmp_path: Path) -> None:
    """Their largest number always comes first; and ranks are 64-bit integers."""
    net = Wrapped(ConvNet(), after=lambda y: y.topk(3)[0 if values else 1])
    path = write(net, torch.zeros(2, *SHAPE), tmp_path / "top.onnx", **DYNAMIC)
    with pytest.raises(UserError, match="is not a classifier: expected logits"):
        load(path)


def test_a_batch_size_that_hides_in_the_graph(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Declared for any number of images, and made for two: refused when opened and not in the middle of an attack."""
    nodes = [helper.make_node("Reshape", ["x", "sizes"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    constants = {"sizes": np.array([2, -1]), "w": np.ones((192, CLASSES), dtype=np.float32)}
    path = save(tmp_path / "two.onnx", nodes, [tensor("x", ["n", *SHAPE])], [tensor("y", ["n", CLASSES])], constants)
    with pytest.raises(UserError, match=r"does not run on images of shape \(3, 8, 8\)"):
        load(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("end", [nn.Identity(), nn.Softmax(dim=1)])
def test_a_file_that_is_only_asked_is_opened_without_a_twin(end: nn.Module, tmp_path: Path) -> None:
    """It answers with the same classes, from probabilities too."""
    path = write(nn.Sequential(ConvNet(), end), torch.zeros(2, *SHAPE), tmp_path / "asked.onnx", **DYNAMIC)
    whole, asked = load(path), load(path, gradients=False)
    assert whole.module is not None
    assert asked.module is None
    x = images(8)
    assert (asked.predict(x).argmax(axis=1) == whole.predict(x).argmax(axis=1)).all()
    assert (asked.classes, asked.input_shape) == (whole.classes, whole.input_shape)
