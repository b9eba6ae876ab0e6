"""Files that tell two classes apart by one number per image: what it is read as, verdicts, and gradients.

All end in the same linear logit z of known weights. So logits, probabilities and gradients are computed here by hand.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import NodeProto, TensorProto
from onnx import helper as h
from onnx import numpy_helper as nh

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.artifacts.preprocessing import Interface
from dgad_tk.data import Split
from evaluators.target.judge import compare_twin
from exporters.formats import load
from exporters.onnx_open.open import NoGradients

SHAPE = (3, 4, 4)
RNG = np.random.default_rng(0)
W = (RNG.standard_normal((48, 1)) * 2).astype(np.float32)
B = np.float32([-W.sum() / 2])
IMAGES = RNG.random((40, *SHAPE), dtype=np.float32)
BATCHES: list[int | str] = ["N", 1, 4]


def z_of(images: np.ndarray) -> np.ndarray:
    return np.asarray(images.reshape(len(images), -1).astype(np.float64) @ W[:, 0] + B[0])


def graph(
    nodes: Sequence[NodeProto],
    outputs: dict[str, Sequence[int | str]],
    folder: Path,
    *,
    batch: int | str | None = "N",
    kind: int = TensorProto.FLOAT,
    weights: dict[str, np.ndarray] | None = None,
) -> Path:
    """A file that flattens images, computes z `(N, 1)`, and goes on with `nodes`. `batch` None: no axis for it."""
    start = [h.make_node("Reshape", ["x", "to"], ["f"]), h.make_node("Gemm", ["f", "w", "b"], ["z"])]
    known = {"w": W, "b": B, "to": np.int64([0 if batch == "N" else batch or 1, 48]), **(weights or {})}
    known = {
        key: value.astype(np.float16) if kind == 10 and value.dtype == np.float32 else value
        for key, value in known.items()
    }
    sizes = list(SHAPE) if batch is None else [batch, *SHAPE]
    ends = [h.make_tensor_value_info(name, 2 if name == "q" else kind, shape) for name, shape in outputs.items()]
    made = h.make_graph(
        [*start, *nodes],
        "g",
        [h.make_tensor_value_info("x", kind, sizes)],
        ends,
        [nh.from_array(np.asarray(value), key) for key, value in known.items()],
    )
    model = h.make_model(made, opset_imports=[h.make_opsetid("", 17), h.make_opsetid("com.microsoft", 1)], ir_version=8)
    path = folder / "one.onnx"
    onnx.save(model, path)
    return path


def node(operator: str, *names: str, **attributes: object) -> NodeProto:
    """The last name is that of the result."""
    return h.make_node(operator, list(names[:-1]), [names[-1]], **attributes)


ONE, HALF, FIRST, SECOND = np.float32([1]), np.float32([0.5]), np.int64([0]), np.int64([1])
KNOWN = {
    "one": ONE,
    "half": HALF,
    "i0": FIRST,
    "i1": SECOND,
    "i2": np.int64([2]),
    "flat": np.int64([-1]),
    "two": np.float32([[0, 1]]),
    "none": np.float32([0]),
}

PROBABILITIES: dict[str, tuple[list[NodeProto], Callable[[np.ndarray], np.ndarray]]] = {
    "sigmoid": ([node("Sigmoid", "z", "p")], lambda z: z),
    "then identity": ([node("Sigmoid", "z", "s"), node("Identity", "s", "p")], lambda z: z),
    "then cast": (
        [node("Sigmoid", "z", "s"), node("Cast", "s", "d", to=11), node("Cast", "d", "p", to=1)],
        lambda z: z,
    ),
    "then clip": (
        [
            node("Constant", "low", value_float=1e-7),
            node("Constant", "high", value_float=1 - 1e-7),
            node("Sigmoid", "z", "s"),
            node("Clip", "s", "low", "high", "p"),
        ],
        lambda z: z,
    ),
    "of class 0": ([node("Sigmoid", "z", "s"), node("Sub", "one", "s", "p")], lambda z: -z),
    "written out": (
        [node("Neg", "z", "n"), node("Exp", "n", "e"), node("Add", "one", "e", "s"), node("Div", "one", "s", "p")],
        lambda z: z,
    ),
    "reciprocal": (
        [node("Neg", "z", "n"), node("Exp", "n", "e"), node("Add", "e", "one", "s"), node("Reciprocal", "s", "p")],
        lambda z: z,
    ),
    "written out from above": (
        [node("Exp", "z", "e"), node("Add", "e", "one", "s"), node("Div", "e", "s", "p")],
        lambda z: z,
    ),
    "in two halves": (
        [
            node("Neg", "z", "n"),
            node("Exp", "n", "en"),
            node("Add", "one", "en", "sn"),
            node("Div", "one", "sn", "pn"),
            node("Exp", "z", "e"),
            node("Add", "e", "one", "s"),
            node("Div", "e", "s", "pp"),
            node("Greater", "z", "none", "c"),
            node("Where", "c", "pn", "pp", "p"),
        ],
        lambda z: z,
    ),
    "softmax, written out": (
        [
            node("Mul", "z", "two", "zz"),
            node("ReduceMax", "zz", "most", axes=[1]),
            node("Sub", "zz", "most", "d"),
            node("Exp", "d", "e"),
            node("ReduceSum", "e", "i1", "t"),
            node("Div", "e", "t", "s"),
            node("Gather", "s", "i1", "p", axis=1),
        ],
        lambda z: z,
    ),
    "softmax, gathered": (
        [node("Mul", "z", "two", "zz"), node("Softmax", "zz", "s"), node("Gather", "s", "i1", "p", axis=1)],
        lambda z: z,
    ),
    "softmax, the first": (
        [node("Mul", "z", "two", "zz"), node("Softmax", "zz", "s"), node("Slice", "s", "i0", "i1", "i1", "p")],
        lambda z: -z,
    ),
    "hard sigmoid": ([node("HardSigmoid", "z", "p", alpha=0.01, beta=0.5)], lambda z: 0.01 * z),
    "cut": (
        [
            node("Constant", "low", value_float=0.0),
            node("Constant", "k", value_float=0.01),
            node("Mul", "z", "k", "m"),
            node("Add", "m", "half", "a"),
            node("Clip", "a", "low", "one1", "p"),
        ],
        lambda z: 0.01 * z,
    ),
}
"""How one number becomes a probability, and the logit of class 1 in terms of z."""


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", ["column", "flat", "image"])
@pytest.mark.parametrize("name", ["logit", *PROBABILITIES])
def test_every_ending(name: str, shape: str, batch: int | str, tmp_path: Path) -> None:
    nodes, turned = ([], lambda z: z) if name == "logit" else PROBABILITIES[name]
    end = "z" if name == "logit" else "p"
    nodes = [node("Constant", "one1", value_float=1.0), *nodes]
    sizes: list[int | str] = [batch, 1]
    if shape == "flat":
        nodes, end, sizes = [*nodes, node("Squeeze", end, "i1", "out")], "out", [batch]
    elif shape == "image":
        nodes, end, sizes = [*nodes, node("Unsqueeze", end, "i2", "out")], "out", [batch, 1, 1]
    path = graph(nodes, {end: sizes}, tmp_path, batch=batch, weights=KNOWN)
    predictor = load(path)
    told = " ".join(predictor.notes)
    assert ("the probability of class 1" if name != "logit" else "the logit of class 1") in told
    z = turned(z_of(IMAGES))
    answers = predictor.predict(IMAGES)
    assert (answers.argmax(axis=1) == (z > 0)).all()
    assert predictor.module is not None
    x = torch.from_numpy(IMAGES).requires_grad_()
    logits = predictor.module(x)
    assert logits.shape == (len(x), 2)
    assert np.allclose((logits[:, 1] - logits[:, 0]).detach(), z, atol=1e-3, rtol=1e-4)
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), x)
    slope = turned(np.float64([1.0]))[0]
    assert np.allclose(gradient.reshape(len(x), -1), slope * W[:, 0], atol=1e-4, rtol=1e-3)
    assert not any("at a time, which is slow" in note for note in predictor.notes)
    agrees(predictor)


def agrees(predictor: Predictor) -> None:
    """The module is the runtime's function, as `dgad attack` asks before it begins."""
    pixels = np.round(IMAGES * 255).astype(np.uint8)
    split = Split(pixels, np.arange(len(pixels)), np.zeros(len(pixels), np.int64))
    assert compare_twin(predictor, split, np.ones(len(pixels), np.bool_), 16) is not None


@pytest.mark.parametrize("name", ["logit", "sigmoid"])
def test_a_file_without_an_axis_for_the_batch(name: str, tmp_path: Path) -> None:
    """It answers with a single number without any axis, or with one of size 1."""
    last = [] if name == "logit" else [node("Sigmoid", "z", "p")]
    end = "z" if name == "logit" else "p"
    for shape, to in (([], np.int64([])), ([1], np.int64([1]))):
        nodes = [*last, node("Reshape", end, "sizes", "out")]
        predictor = load(graph(nodes, {"out": shape}, tmp_path, batch=None, weights={**KNOWN, "sizes": to}), SHAPE)
        assert predictor.one_number
        answers = predictor.predict(IMAGES)
        assert (answers.argmax(axis=1) == (z_of(IMAGES) > 0)).all()
        assert predictor.module is not None
        logits = predictor.module(torch.from_numpy(IMAGES))
        assert np.allclose(logits[:, 1] - logits[:, 0], z_of(IMAGES), atol=1e-3)
        agrees(predictor)


def test_half_precision(tmp_path: Path) -> None:
    for nodes, end in (([], "z"), ([node("Sigmoid", "z", "p")], "p")):
        predictor = load(graph(nodes, {end: ["N", 1]}, tmp_path, kind=10, weights=KNOWN))
        assert (predictor.one_number, predictor.precision) == (True, "fp16")
        z = z_of(IMAGES)
        assert (predictor.predict(IMAGES).argmax(axis=1) == (z > 0))[np.abs(z) > 0.1].all()
        assert predictor.module is not None
        logits = predictor.module(torch.from_numpy(IMAGES))
        assert np.allclose(logits[:, 1] - logits[:, 0], z, atol=0.1)
        agrees(predictor)


QUANTISED = {
    "sigmoid, quantised": (
        [
            node("Sigmoid", "z", "s"),
            node("QuantizeLinear", "s", "ps", "u0", "q"),
            node("DequantizeLinear", "q", "ps", "u0", "p"),
        ],
        {"p": ["N", 1]},
    ),
    "integers of a sigmoid": (
        [node("Sigmoid", "z", "s"), node("QuantizeLinear", "s", "ps", "u0", "q")],
        {"q": ["N", 1]},
    ),
    "integers of a logit": ([node("QuantizeLinear", "z", "zs", "u128", "q")], {"q": ["N", 1]}),
    "a quantised logit": (
        [node("QuantizeLinear", "z", "zs", "u128", "qq"), node("DequantizeLinear", "qq", "zs", "u128", "p")],
        {"p": ["N", 1]},
    ),
    "sigmoid of integers": (
        [
            node("QuantizeLinear", "z", "zs", "u128", "qq"),
            h.make_node("QLinearSigmoid", ["qq", "zs", "u128", "ps", "u0"], ["qs"], domain="com.microsoft"),
            node("DequantizeLinear", "qs", "ps", "u0", "p"),
        ],
        {"p": ["N", 1]},
    ),
}
LEVELS = {"ps": np.float32(1 / 256), "u0": np.uint8(0), "zs": np.float32(0.25), "u128": np.uint8(128)}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_files(name: str, tmp_path: Path) -> None:
    nodes, outputs = QUANTISED[name]
    predictor = load(graph(nodes, outputs, tmp_path, weights={**KNOWN, **LEVELS}))
    assert (predictor.one_number, predictor.precision) == (True, "int8")
    assert ("probability of class 1" in " ".join(predictor.notes)) == ("sigmoid" in name)
    z = z_of(IMAGES)
    answers = predictor.predict(IMAGES)
    assert (answers.argmax(axis=1) == (z > 0))[np.abs(z) > 0.25].all()
    assert predictor.module is not None
    x = torch.from_numpy(IMAGES).requires_grad_()
    logits = predictor.module(x)
    inside = np.abs(z) < 30  # within the levels of the logits
    assert np.allclose((logits[:, 1] - logits[:, 0]).detach().numpy()[inside], z[inside], atol=0.26)
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0])[torch.from_numpy(inside)].sum(), x)
    assert np.allclose(gradient.reshape(len(x), -1)[inside], W[:, 0], atol=1e-4)
    agrees(predictor)


def test_a_probability_of_a_half_is_class_0(tmp_path: Path) -> None:
    """And the next number above is class 1, although both have nearly the same logarithm."""
    nodes = [node("ReduceMax", "x", "m", axes=[1, 2, 3], keepdims=0), node("Unsqueeze", "m", "i1", "u")]
    nodes += [node("Mul", "z", "zero", "zz"), node("Add", "u", "zz", "a"), node("Constant", "low", value_float=0.0)]
    nodes += [node("Constant", "one1", value_float=1.0), node("Clip", "a", "low", "one1", "p")]
    predictor = load(graph(nodes, {"p": ["N", 1]}, tmp_path, weights={**KNOWN, "zero": np.float32([0])}))
    levels = np.float32(
        [0.5, np.nextafter(np.float32(0.5), np.float32(1)), np.nextafter(np.float32(0.5), np.float32(0))]
    )
    images = np.broadcast_to(levels[:, None, None, None], (3, *SHAPE)).astype(np.float32)
    assert predictor.predict(images).argmax(axis=1).tolist() == [0, 1, 0]


def doubled(nodes: list[NodeProto], folder: Path) -> Path:
    """A file of double precision that answers `p`, made of the mean grey level `m` `(N, 1)` of its images."""
    known = {"k": 2.0**-40, "zero": 0.0, "one": 1.0, "half": 0.5, "tiny": 1e-300}
    made = h.make_graph(
        [node("ReduceMax", "x", "m", axes=[1, 2, 3], keepdims=0), node("Unsqueeze", "m", "axis", "u"), *nodes],
        "g",
        [h.make_tensor_value_info("x", TensorProto.DOUBLE, ["N", *SHAPE])],
        [h.make_tensor_value_info("p", TensorProto.DOUBLE, ["N", "K"])],
        [nh.from_array(SECOND, "axis"), *(nh.from_array(np.float64(value), key) for key, value in known.items())],
    )
    path = folder / "double.onnx"
    onnx.save(h.make_model(made, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    return path


GREYS = np.broadcast_to(np.float32([0.25, 0.0, 1.0])[:, None, None, None], (3, *SHAPE)).copy()


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Sub", "u", "half", "d"), node("Mul", "d", "tiny", "p")],
        [node("Mul", "u", "k", "s"), node("Add", "s", "half", "a"), node("Clip", "a", "zero", "one", "p")],
    ],
    ids=["logit", "probability"],
)
def test_of_double_precision_the_verdict_is_the_files(nodes: list[NodeProto], tmp_path: Path) -> None:
    """In float32 all of these numbers are 0, or 0.5."""
    path = doubled(nodes, tmp_path)
    numbers = onnxruntime.InferenceSession(str(path)).run(None, {"x": GREYS.astype(np.float64)})[0]
    above = numbers[:, 0] > (0.5 if len(nodes) == 3 else 0)
    assert len(set(above.tolist())) == 2
    assert (load(path).predict(GREYS).argmax(axis=1) == above).all()


@pytest.mark.parametrize("end", ["Sigmoid", "Softmax"])
def test_of_double_precision_sure_answers_are_finite(end: str, tmp_path: Path) -> None:
    """The smallest number of float64 is 0 in float32, and its logarithm would count as broken."""
    nodes = [node("Sub", "u", "half", "d"), node("Mul", "d", "large", "z"), node("Sigmoid", "z", "p")]
    if end == "Softmax":
        nodes[2:] = [node("Neg", "z", "n"), node("Concat", "n", "z", "b", axis=1), node("Softmax", "b", "p", axis=1)]
    nodes.insert(0, node("Constant", "large", value=nh.from_array(np.float64(1e3))))
    predictor = load(doubled(nodes, tmp_path))
    answers = predictor.predict(GREYS)
    assert np.isfinite(answers).all()
    assert answers.argmax(axis=1).tolist() == [0, 0, 1]
    assert predictor.module is not None
    assert predictor.finish is not None
    finished = predictor.finish(predictor.module(torch.from_numpy(GREYS)))
    assert finished.isfinite().all()


def test_a_saturated_sigmoid_keeps_its_gradients(tmp_path: Path) -> None:
    """Where float32 gives exactly 0 and 1, gradients still come from z, and the answers are finite."""
    nodes = [node("Mul", "z", "k", "big"), node("Sigmoid", "big", "p")]
    predictor = load(graph(nodes, {"p": ["N", 1]}, tmp_path, weights={**KNOWN, "k": np.float32([1000])}))
    answers = predictor.predict(IMAGES)
    assert np.isfinite(answers).all()
    assert set(np.exp(answers.astype(np.float64)).max(axis=1).tolist()) == {1.0}
    assert predictor.module is not None
    x = torch.from_numpy(IMAGES).requires_grad_()
    (gradient,) = torch.autograd.grad(predictor.module(x)[:, 1].sum(), x)
    assert np.allclose(gradient.reshape(len(x), -1), 1000 * W[:, 0], rtol=1e-4)
    agrees(predictor)


FEATURES = {
    "features before": (["z", "feats"], "p"),
    "more classes beside": (["p", "rows"], "rows"),
    "a label beside": (["label", "p"], "p"),
    "the logit beside": (["p", "z"], "z"),
}


@pytest.mark.parametrize("name", FEATURES)
def test_one_of_several_outputs(name: str, tmp_path: Path) -> None:
    """Features before the last layer are no logits; rows that do not lead to the single number are."""
    nodes = [node("Sigmoid", "z", "p"), node("Greater", "p", "half", "above"), node("Cast", "above", "label", to=7)]
    nodes += [node("MatMul", "f", "rw", "rows"), node("MatMul", "f", "fw", "feats"), node("MatMul", "feats", "hw", "s")]
    nodes += [node("Sigmoid", "s", "head")]
    rng = np.random.default_rng(1)
    weights = {
        "rw": rng.standard_normal((48, 5)).astype(np.float32),
        "fw": rng.standard_normal((48, 8)).astype(np.float32),
        "hw": rng.standard_normal((8, 1)).astype(np.float32),
    }
    sizes: dict[str, list[int | str]] = {"rows": ["N", 5], "feats": ["N", 8]}
    given, wanted = FEATURES[name]
    given, wanted = (["feats", "head"], "head") if name == "features before" else (given, wanted)
    outputs = {each: sizes.get(each, ["N", 1]) for each in given if each != "label"}
    path = graph(nodes, outputs, tmp_path, weights={**KNOWN, **weights})
    if "label" in given:
        model = onnx.load(path)
        model.graph.output.insert(0, h.make_tensor_value_info("label", 7, ["N", 1]))
        onnx.save(model, path)
    predictor = load(path)
    assert predictor.interface.logits_output == wanted
    assert (predictor.classes == 5) == (wanted == "rows")
    for each in given:
        if each != "label":
            assert load(path, None, Interface(logits_output=each)).one_number == (each in ("p", "z", "head"))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Abs", "z", "p")],
        [node("Sigmoid", "z", "s"), node("Mul", "s", "k", "p")],
        [node("Sigmoid", "z", "s"), node("Sub", "s", "half", "p")],
        [node("Tanh", "z", "p")],
        [node("Exp", "z", "p")],
    ],
)
def test_what_may_leave_0_to_1_is_a_logit(nodes: list[NodeProto], tmp_path: Path) -> None:
    predictor = load(graph(nodes, {"p": ["N", 1]}, tmp_path, weights={**KNOWN, "k": np.float32([1000])}))
    assert "the logit of class 1" in " ".join(predictor.notes)
    agrees(predictor)


@pytest.mark.parametrize("name", ["half", "class", "forward", "training", "T_destination", "graph", "self"])
def test_weights_may_have_any_name(name: str, tmp_path: Path) -> None:
    nodes = [node("Mul", "z", name, "p")]
    predictor = load(graph(nodes, {"p": ["N", 1]}, tmp_path, weights={name: np.float32([2])}))
    assert predictor.module is not None
    assert np.allclose(predictor.module(torch.from_numpy(IMAGES))[:, 1], 2 * z_of(IMAGES), atol=1e-3)


def test_an_operator_without_a_twin_leaves_the_reading(tmp_path: Path) -> None:
    nodes = [node("Scan", "z", "y", body=_identity(), num_scan_inputs=1), node("Sigmoid", "y", "p")]
    weights = KNOWN
    with pytest.raises(NoGradients) as caught:
        load(graph(nodes, {"p": ["N", 1]}, tmp_path, weights=weights))
    predictor = caught.value.predictor
    assert predictor.one_number
    assert "the probability of class 1" in " ".join(predictor.notes)
    assert (predictor.predict(IMAGES).argmax(axis=1) == (z_of(IMAGES) > 0)).all()


def _identity() -> onnx.GraphProto:
    """The body of a Scan that gives what it takes."""
    given, made = (h.make_tensor_value_info(name, 1, [1]) for name in ("i", "o"))
    return h.make_graph([node("Identity", "i", "o")], "body", [given], [made])
