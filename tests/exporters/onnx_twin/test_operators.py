"""What onnx has no case for: old opsets, combinations of attributes, branches. ONNX Runtime is the judge."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from dgad_tk.common import UserError
from exporters.onnx_twin import to_torch

Array = NDArray[Any]
Row = tuple[str, int, tuple[int, ...], dict[str, Array | None], dict[str, Any]]

IMAGES = (2, 6, 7, 10)
SCALES = ([1, 1, 2, 2], [1, 1, 0.5, 0.7], [1, 1, 1.7, 2.3])
SIZES = ([2, 6, 4, 3], [2, 6, 1, 15])
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def resizes() -> Iterator[Row]:
    for scales, mode in product(SCALES, ("nearest", "linear")):
        factors = np.array(scales, np.float32)
        yield "Resize", 10, IMAGES, {"scales": factors}, {"mode": mode}
        if min(scales) >= 1:
            yield "Upsample", 7, IMAGES, {}, {"mode": mode, "scales": [float(scale) for scale in scales]}
            yield "Upsample", 9, IMAGES, {"scales": factors}, {"mode": mode}
        for_nearest = {"mode": mode, "coordinate_transformation_mode": "tf_half_pixel_for_nn"}
        yield "Resize", 11, IMAGES, {"roi": np.zeros(0, np.float32), "scales": factors}, for_nearest
    amounts = [{"roi": None, "scales": np.array(scales, np.float32)} for scales in SCALES[1:]]
    amounts += [{"roi": None, "scales": None, "sizes": np.array(sizes)} for sizes in SIZES]
    roundings = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    for position, (coordinates, amount) in enumerate(product(COORDINATES, amounts)):
        common = {"coordinate_transformation_mode": coordinates}
        for rounding in roundings[:2] if coordinates == "half_pixel_symmetric" else roundings:
            # (What half_pixel_symmetric rounds to a pixel's edge is up to the last bit.)
            yield "Resize", 19, IMAGES, amount, {"mode": "nearest", "nearest_mode": rounding, **common}
        antialias, outside = position % 2, position // 2 % 2
        yield "Resize", 19, IMAGES, amount, {"mode": "linear", "antialias": antialias, **common}
        cubic = {"mode": "cubic", "antialias": antialias, "exclude_outside": outside}
        yield "Resize", 19, IMAGES, amount, {**cubic, **common}
    roi = np.array([0, 0, 0.1, -0.1, 1, 1, 0.8, 1.2], np.float32)
    for mode, amount in product(("nearest", "linear"), amounts[1:3]):
        crop = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 3.5, "mode": mode}
        yield "Resize", 13, IMAGES, {**amount, "roi": roi}, crop
    for policy, sizes in product(("not_larger", "not_smaller"), ([5, 5], [14, 30], [3, 20])):
        aspect = {"axes": [2, 3], "keep_aspect_ratio_policy": policy, "mode": "linear"}
        yield "Resize", 18, IMAGES, {"roi": None, "scales": None, "sizes": np.array(sizes)}, aspect
    volume = np.array([1, 1, 0.5, 1.5, 1], np.float32)
    yield "Resize", 13, (2, 3, 5, 6, 7), {"roi": None, "scales": volume}, {"mode": "linear"}
    last = np.array([1, 2, 2, 1], np.float32)  # channels last
    yield "Resize", 13, IMAGES, {"roi": None, "scales": last}, {"mode": "cubic"}


def transposed_convolutions() -> Iterator[Row]:
    pads: tuple[dict[str, Any], ...] = (
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 1, 0]},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
        {"output_shape": []},
        {"output_shape": [], "auto_pad": "SAME_UPPER"},
    )
    for pad, stride, dilation, kernel, groups in product(pads, (2, 3), (1, 2), (2, 3), (1, 2)):
        weights = {"w": floats(6, 3, kernel, kernel), "b": floats(3 * groups)}
        window = {"strides": [stride] * 2, "dilations": [dilation] * 2, "group": groups, **pad}
        if "output_shape" in pad:  # one entry less than there is, so that one end is cut off
            window["output_shape"] = [stride * (size - 1) + dilation * (kernel - 1) for size in (5, 6)]
        yield "ConvTranspose", 13, (2, 6, 5, 6), weights, window
    yield "ConvTranspose", 11, (2, 6, 5), {"w": floats(6, 3, 2)}, {"strides": [2], "output_padding": [1]}


def others() -> Iterator[Row]:
    for size in (1, 3, 5):
        yield "LRN", 13, IMAGES, {}, {"size": size, "alpha": 0.5}
    yield "GlobalLpPool", 2, IMAGES, {}, {"p": 3}
    for pads, ceil, p in product(([0, 0, 0, 0], [1, 0, 0, 1]), (0, 1), (1, 3)):
        window = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": pads, "ceil_mode": ceil}
        yield "LpPool", 18, IMAGES, {}, {**window, "p": p}
        yield "MaxPool", 12, IMAGES, {}, {**window, "storage_order": p // 3, "dilations": [1, 2]}
    per_group = {"scale": floats(3), "shift": floats(3, seed=1)}
    yield "GroupNormalization", 18, IMAGES, per_group, {"num_groups": 3}
    pixels, channel = (2, 6, 1, 1), {"scale": floats(6), "shift": floats(6, seed=1)}
    yield "InstanceNormalization", 17, pixels, channel, {}
    yield "GroupNormalization", 21, (1, 6, 1, 1), channel, {"num_groups": 6}
    for scale, shift in (((1, 4), (1, 4)), ((3, 4), (4,)), ((1,), (3, 4))):
        affine = {"scale": floats(*scale), "shift": floats(*shift, seed=1)}
        yield "LayerNormalization", 17, (2, 3, 4), affine, {"axis": 1}
    for mode in ("wrap", "edge", "reflect"):
        yield "Pad", 19, IMAGES, {"pads": np.array([0, 0, -1, 2, 0, 0, 2, -3])}, {"mode": mode}
    yield "Hardmax", 11, IMAGES, {}, {"axis": 2}
    yield "TopK", 9, IMAGES, {}, {"axis": 1, "k": 3}
    yield "MeanVarianceNormalization", 13, IMAGES, {}, {"axes": [1, 3]}
    yield "CumSum", 14, IMAGES, {"axis": np.array(-2)}, {"exclusive": 1, "reverse": 1}
    yield "Einsum", 12, IMAGES, {"w": floats(6, 4)}, {"equation": "nchw,cd->nhwd"}
    yield "EyeLike", 9, (4, 5), {}, {"k": -1, "dtype": int(TensorProto.INT64)}
    yield "GatherND", 13, IMAGES, {"i": np.array([[[0, 1], [2, -1]], [[1, 1], [-3, 0]]])}, {"batch_dims": 1}
    for reduction in ("none", "add", "mul", "max", "min"):
        rows = {"i": np.array([[0, 1], [1, -2], [1, 3]]), "u": floats(3, 7, 10)}
        yield "ScatterND", 18, IMAGES, rows, {"reduction": reduction}
        entries = {"i": np.tile(np.array([-2, 1, 0])[:, None, None], (2, 1, 4, 2)), "u": floats(2, 3, 4, 2)}
        yield "ScatterElements", 18, IMAGES, entries, {"axis": 1, "reduction": reduction}
    grid = np.random.default_rng(0).uniform(-1.3, 1.3, (2, 5, 5, 2)).astype(np.float32)
    for mode, padding, corners in product(("bilinear", "bicubic"), ("zeros", "border", "reflection"), (0, 1)):
        how = {"mode": mode, "padding_mode": padding, "align_corners": corners}
        yield "GridSample", 16, IMAGES, {"grid": grid}, how
    for heads, how in product((4, 2), ({}, {"is_causal": 1}, {"softcap": 2.0}, {"scale": 0.3})):
        keys = {"k": floats(2, 5, 6 * heads), "v": floats(2, 5, 6 * heads, seed=1)}
        yield "Attention", 23, (2, 5, 24), keys, {"q_num_heads": 4, "kv_num_heads": heads, **how}


def model_of(row: Row, outputs: int) -> onnx.ModelProto:
    op_type, opset, shape, constants, attributes = row
    names = [name if value is not None else "" for name, value in constants.items()]
    results = [f"y{index}" for index in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *names], results, **attributes)],
        op_type,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(name) for name in results],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if value is not None],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    return model


def runtime(model: onnx.ModelProto, **inputs: Array) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(value) for value in session.run(None, inputs)]


@pytest.mark.parametrize("rows", [resizes, transposed_convolutions, others])
def test_as_onnx_runtime(rows: Any) -> None:
    """Every output in values and type; nothing is rounded in double precision, or stays behind on another device."""
    known = set()
    for row in rows():
        op_type, _, shape, _, attributes = row
        outputs = 2 if op_type in ("MaxPool", "TopK") else 1
        model, x = model_of(row, outputs), torch.from_numpy(floats(*shape, seed=5))
        for index, expected in enumerate(runtime(model, x=x.numpy())):
            one = onnx.ModelProto()
            one.CopyFrom(model)
            del one.graph.output[:]
            one.graph.output.append(model.graph.output[index])
            twin = to_torch(one)
            torch.testing.assert_close(twin(x), expected, rtol=1e-4, atol=2e-5, msg=lambda text: f"{row}\n{text}")  # noqa: B023
            if (kind := (op_type, index, attributes.get("mode"))) not in known:
                known.add(kind)
                raised = twin.double()(x.double()).dtype
                assert raised == (torch.float64 if expected.is_floating_point() else expected.dtype), row
                assert twin.to("meta")(x.double().to("meta")).shape == expected.shape, row


def branches(
    condition: list[onnx.NodeProto], then: list[onnx.NodeProto], other: list[onnx.NodeProto]
) -> onnx.ModelProto:
    """`y = then(x) if condition else other(x)`; each list ends in a node whose output is `c`, `a` or `b`."""
    subgraphs = [
        helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(name)])
        for nodes, name in ((then, "a"), (other, "b"))
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=subgraphs[0], else_branch=subgraphs[1])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["outer"]), *condition, node],
        "branches",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array([2.0], np.float32), "two"),
            numpy_helper.from_array(np.array([5.0], np.float32), "five"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


FOLDED = [helper.make_node("Less", ["two", "five"], ["less"]), helper.make_node("Squeeze", ["less"], ["c"])]
UNFOLDED = [
    helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
    helper.make_node("Squeeze", ["five"], ["limit"]),
    helper.make_node("Less", ["most", "limit"], ["c"]),
]
ADD = [helper.make_node("Add", ["outer", "five"], ["a"])]
FOO = [helper.make_node("Foo", ["outer"], ["b"], name="unknown")]


def nested() -> list[onnx.NodeProto]:
    """A branch in a branch, which reads a name of the one around it."""
    inner = branches([], [helper.make_node("Sub", ["shifted", "two"], ["a"])], FOO).graph.node[-1]
    inner.output[0] = "a"
    return [helper.make_node("Add", ["outer", "five"], ["shifted"]), inner]


def test_branches() -> None:
    """The condition is constant once folded; a branch sees outer values and initializers, also from inside another."""
    x = floats(2, 3)
    for then in (ADD, nested(), [helper.make_node("Identity", ["five"], ["a"])]):
        model = branches(FOLDED, then, [helper.make_node("Neg", ["outer"], ["b"])])
        if then == ADD or len(then) == 1:
            (expected,) = runtime(model, x=x)
        else:
            expected = torch.from_numpy(x * 2 + 5 - 2)
        torch.testing.assert_close(to_torch(model)(torch.from_numpy(x)), expected)
    assert [node.name for node in to_torch(branches(FOLDED, ADD, FOO)).graph.nodes if node.op == "placeholder"] == ["x"]


@pytest.mark.parametrize(
    ("expected", "model"),
    [
        ("no operator 'Foo' .* node 'unknown'", branches([helper.make_node("Not", ["d"], ["c"])], ADD, FOO)),
        ("'cond' has to be a constant", branches(UNFOLDED, ADD, [helper.make_node("Neg", ["outer"], ["b"])])),
    ],
)
def test_branches_that_are_refused(expected: str, model: onnx.ModelProto) -> None:
    """The chosen branch has an operator that the twin lacks; the choice depends on the images."""
    model.graph.initializer.append(helper.make_tensor("d", TensorProto.BOOL, [], [True]))
    with pytest.raises(UserError, match=expected):
        to_torch(model)


@pytest.mark.parametrize("factor", [0.7, 0.35, 1.4])
def test_fractions_of_a_size_are_float32(factor: float) -> None:
    """Seven tenths of 10 are 7 in float32, and a little less where 0.7 is widened to a double."""
    constants = {"ends": np.array([2, 3]), "factor": np.float32(factor)}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "ends"], ["sides"]),
        helper.make_node("Cast", ["sides"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "factor"], ["scaled"]),
        helper.make_node("Floor", ["scaled"], ["floor"]),
        helper.make_node("Cast", ["floor"], ["target"], to=TensorProto.INT64),
        helper.make_node("Resize", ["x", "", "", "target"], ["y"], axes=[2, 3], mode="nearest"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    twin = to_torch(model)
    for height in (10, 20, 30, 50):
        x = floats(1, 3, height, 40)
        torch.testing.assert_close(twin(torch.from_numpy(x)), runtime(model, x=x)[0])


def test_a_mean_of_integers() -> None:
    x = np.array([[7, 8, 9, -30], [1, 2, 2, 0]], np.int32)
    model = model_of(("ReduceMean", 13, x.shape, {}, {"axes": [1]}), 1)
    for info in (*model.graph.input, *model.graph.output):
        info.CopyFrom(helper.make_tensor_value_info(info.name, TensorProto.INT32, None))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.INT32, x.shape))
    assert to_torch(model)(torch.from_numpy(x)).tolist() == runtime(model, x=x)[0].tolist()


def test_a_norm_has_a_gradient_at_zero() -> None:
    """`F.normalize` of features that are all zero: torch's own gradient is no NaN."""
    twin = to_torch(model_of(("ReduceL2", 13, (2, 3), {}, {"axes": [1]}), 1))
    x = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(twin(x).sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.6, 0.8]]))


STATISTICS = {"scale": floats(6), "shift": floats(6), "mean": floats(6), "variance": floats(6) ** 2}


@pytest.mark.parametrize(
    ("expected", "row", "outputs"),
    [
        ("training_mode is on", ("BatchNormalization", 9, IMAGES, STATISTICS, {}), 5),
        (
            "dilations",
            ("MaxPool", 12, IMAGES, {}, {"kernel_shape": [2, 2], "dilations": [2, 2], "auto_pad": "SAME_UPPER"}),
            1,
        ),
    ],
)
def test_refused(expected: str, row: Row, outputs: int) -> None:
    """The runtime trains, or does not pad as ONNX says."""
    with pytest.raises(UserError, match=expected):
        to_torch(model_of(row, outputs))


def test_a_quotient_of_sizes_that_one_image_makes_infinite() -> None:
    """N / (N - 1), as of an unbiased variance. The twin tries a batch of one to tell what depends on the batch."""
    constants = {"first": np.array([0]), "one": np.array([1])}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["n"]),
        helper.make_node("Sub", ["n", "one"], ["others"]),
    ]
    for dtype in (TensorProto.INT64, TensorProto.FLOAT, TensorProto.DOUBLE):
        casts = [helper.make_node("Cast", [name], [f"{name}_cast"], to=dtype) for name in ("n", "others")]
        last = [
            helper.make_node("Div", ["n_cast", "others_cast"], ["quotient"]),
            helper.make_node("Cast", ["quotient"], ["factor"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["x", "factor"], ["y"]),
        ]
        graph = helper.make_graph(
            [*nodes, *casts, *last],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_empty_tensor_value_info("y")],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        twin = to_torch(model)
        for batch in (4, 7) if dtype == TensorProto.INT64 else (1, 4, 7):
            x = np.abs(floats(batch, 3)) + 0.1
            torch.testing.assert_close(twin(torch.from_numpy(x)), runtime(model, x=x)[0])
