"""ONNX Runtime's own operators one by one. It judges them itself, on all integers and on every attribute."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from contrib_models import FLOAT, Array, node_model, run, scales

from dgad_tk.common import UserError
from exporters.onnx_twin import to_torch

Case = tuple[str, dict[str, Array], list[str], dict[str, Array], np.dtype[Any], dict[str, Any]]


def quantised_cases(kind: type[Any], seed: int) -> Iterator[Case]:
    """Operators on 8-bit integers, on all of them or all pairs where they go entry by entry."""
    dtype, draw = np.dtype(kind), np.random.default_rng(seed)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    every = np.arange(low, high + 1).astype(kind)
    a, b = (grid.ravel() for grid in np.meshgrid(every, every))

    def point() -> Array:
        return np.array(draw.integers(low, high + 1), dtype)

    def quantised(*shape: int) -> Array:
        return draw.integers(low, high + 1, shape).astype(kind)

    two = {"az": point(), "bz": point(), "yz": point(), "b": b}
    pair = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
    yield "QLinearAdd", {"a": a}, pair, two | scales(**{"as": 0.031, "bs": 0.017, "ys": 0.043}), dtype, {}
    yield "QLinearMul", {"a": a}, pair, two | scales(**{"as": 0.031, "bs": 0.017, "ys": 0.051}), dtype, {}
    condition = {"c": draw.integers(0, 2, a.shape).astype(bool)}
    where = scales(**{"as": 0.031, "bs": 0.017, "ys": 0.03})
    yield "QLinearWhere", {"a": a}, ["c", *pair], two | condition | where, dtype, {}

    one, names = {"xz": point(), "yz": point()}, ["x", "xs", "xz", "ys", "yz"]
    probability = {"xz": point(), "yz": np.array(low, dtype)} | scales(xs=0.04, ys=1 / 256)
    yield "QLinearSigmoid", {"x": every}, names, probability, dtype, {}
    yield "QLinearLeakyRelu", {"x": every}, names, one | scales(xs=0.05, ys=0.03), dtype, {"alpha": 0.1}
    rows = {"axis": -1, "opset": 13}
    yield "QLinearSoftmax", {"x": quantised(64, 10)}, names, probability, dtype, rows
    fine = probability | scales(ys=0.0021)  # 476.2 steps from 0 to 1
    yield "QLinearSoftmax", {"x": quantised(64, 10)}, names, fine, dtype, rows
    image = {"x": quantised(2, 6, 7, 8)}
    means = one | scales(xs=0.05, ys=0.05)  # so that many means are halves of a step
    window = {"kernel_shape": [2, 2], "pads": [0, 1, 1, 1], "strides": [2, 2]}
    for whole in (0, 1):
        yield "QLinearAveragePool", image, names, means, dtype, window | {"count_include_pad": whole}
        yield "QLinearAveragePool", image, names, means, dtype, window | {"count_include_pad": whole, "ceil_mode": 1}
    for last in (0, 1):
        yield "QLinearGlobalAveragePool", image, names, means, dtype, {"channels_last": last}
    yield "NhwcMaxPool", image, ["x"], {}, dtype, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    joined = {"xz": point(), "bz": point(), "yz": point(), "b": quantised(2, 3, 7, 8)}
    joined |= scales(xs=0.05, bs=0.03, ys=0.05)
    parts = ["ys", "yz", "x", "xs", "xz", "b", "bs", "bz", "x", "ys", "yz"]
    yield "QLinearConcat", image, parts, joined, dtype, {"axis": 1}

    for last in (0, 1):
        kernel = {"w": quantised(8, 3, 3, 3), "wz": np.zeros(8, dtype), "b": draw.integers(-9999, 9999, 8, np.int32)}
        kernel |= {"xz": point(), "yz": point(), "ws": draw.uniform(0.01, 0.03, 8).astype(np.float32)}
        order = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
        options = {"group": 2, "pads": [1, 0, 1, 2], "strides": [2, 1], "channels_last": last}
        x = quantised(2, 7, 8, 6) if last else quantised(2, 6, 7, 8)
        yield "QLinearConv", {"x": x}, order, kernel | scales(xs=0.04, ys=1.1), dtype, options
    for columns_first in (0, 1):
        shape = (5, 12) if columns_first else (12, 5)
        dense = {
            "w": quantised(*shape),
            "wz": np.full(5, (low + high + 1) // 2, dtype),
            "c": draw.integers(-9999, 9999, 5, np.int32),
        }
        dense |= {"xz": point(), "yz": point(), "ws": draw.uniform(0.01, 0.03, 5).astype(np.float32)}
        order = ["x", "xs", "xz", "w", "ws", "wz", "c"]
        options = {"transB": columns_first, "alpha": 0.5}
        yield "QGemm", {"x": quantised(9, 12)}, order, dense | scales(xs=0.04), FLOAT, options
        yield "QGemm", {"x": quantised(9, 12)}, [*order, "ys", "yz"], dense | scales(xs=0.04, ys=0.2), dtype, options
    wide = {"w": quantised(12, 5), "xs": np.array([0.04], np.float32), "ws": draw.uniform(0.01, 0.03, 5)}
    wide |= {"xz": point(), "wz": quantised(5), "c": draw.uniform(-1, 1, 5)}
    wide = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in wide.items()}
    order = ["x", "w", "xs", "ws", "xz", "wz", "c"]
    yield "MatMulIntegerToFloat", {"x": quantised(3, 9, 12)}, order, wide, FLOAT, {}
    numbers = {"x": draw.normal(0, 1, (9, 12)).astype(np.float32)}
    yield "DynamicQuantizeMatMul", numbers, ["x", "w", "ws", "wz", "c"], wide, FLOAT, {}
    yield "QuantizeLinear", {"x": numbers["x"]}, ["x", "s", "z"], {"z": point()} | scales(s=0.01), dtype, {}
    yield "DequantizeLinear", {"x": every}, ["x", "s", "z"], {"z": point()} | scales(s=0.01), FLOAT, {}


def all_cases() -> Iterator[Any]:
    for kind in (np.uint8, np.int8):
        for number, case in enumerate(quantised_cases(kind, seed=number_of(kind))):
            yield pytest.param(case, id=f"{number}-{case[0]}-{np.dtype(kind).name}")


def number_of(kind: type[Any]) -> int:
    return np.dtype(kind).num


@pytest.mark.parametrize("case", list(all_cases()))
def test_contrib_operators(case: Case) -> None:
    """Integers as ONNX Runtime's, but for one in a thousand that another CPU's kernel may round to its neighbour."""
    op, inputs, order, weights, output, attributes = case
    used = {name: array for name, array in weights.items() if name in order}
    model = node_model(op, inputs, order, used, output, **attributes)
    ((_, x),) = inputs.items()
    expected, actual = torch.from_numpy(run(model, x)), to_torch(model)(torch.from_numpy(x))
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).abs()
    if output == FLOAT:
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    else:
        assert difference.max() <= 1
        assert (difference > 0).double().mean() <= 1e-3
    assert expected.double().std() > 0  # nothing was saturated into one value


def float_cases() -> Iterator[Case]:
    draw = np.random.default_rng(0)

    def real(*shape: int) -> Array:
        return draw.normal(0, 1, shape).astype(np.float32)

    image, kernel = {"x": real(2, 4, 6, 6)}, {"w": real(8, 4, 3, 3), "b": real(8), "z": real(2, 8, 4, 4)}
    activations: dict[str, list[float]] = {
        "Relu": [],
        "Tanh": [],
        "Sigmoid": [],
        "LeakyRelu": [0.2],
        "Clip": [0.0, 6.0],
        "HardSigmoid": [0.2, 0.5],
    }
    for name, parameters in activations.items():
        options = {"activation": name} | ({"activation_params": parameters} if parameters else {})
        yield "FusedConv", image, ["x", "w", "b"], kernel, FLOAT, options
    yield "FusedConv", image, ["x", "w", "b", "z"], kernel, FLOAT, {"activation": "Relu"}
    matrix, dense = {"x": real(5, 6)}, {"w": real(7, 6), "c": real(7)}
    options = {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.1}
    yield "FusedGemm", matrix, ["x", "w", "c"], dense, FLOAT, options
    yield (
        "FusedMatMul",
        {"x": real(2, 6, 5)},
        ["x", "w"],
        {"w": real(7, 6)},
        FLOAT,
        {"transA": 1, "transB": 1, "alpha": 0.5},
    )
    tokens = {"x": real(2, 5, 8)}
    yield "Gelu", tokens, ["x"], {}, FLOAT, {}
    yield "BiasGelu", tokens, ["x", "b"], {"b": real(8)}, FLOAT, {}
    yield "FastGelu", tokens, ["x", "b"], {"b": real(8)}, FLOAT, {}
    yield "QuickGelu", tokens, ["x"], {}, FLOAT, {}
    yield "QuickGelu", tokens, ["x"], {}, FLOAT, {"alpha": 1.0}
    yield "SimplifiedLayerNormalization", tokens, ["x", "g"], {"g": real(8)}, FLOAT, {"domain": "", "epsilon": 1e-3}
    skips = {"s": real(2, 5, 8), "g": real(8), "h": real(8), "b": real(8)}
    yield "SkipLayerNormalization", tokens, ["x", "s", "g", "h", "b"], skips, FLOAT, {"epsilon": 1e-3}
    yield "SkipSimplifiedLayerNormalization", tokens, ["x", "s", "g"], skips, FLOAT, {"epsilon": 1e-3}


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{n}-{case[0]}") for n, case in enumerate(float_cases())])
def test_fused_float_operators(case: Case) -> None:
    op, inputs, order, weights, output, attributes = case
    used = {name: array for name, array in weights.items() if name in order}
    model = node_model(op, inputs, order, used, output, **attributes)
    ((_, x),) = inputs.items()
    expected = torch.from_numpy(run(model, x))
    tolerance = 1e-3 if "Gelu" in op else 1e-5  # some kernels approximate erf and exp
    torch.testing.assert_close(to_torch(model)(torch.from_numpy(x)), expected, rtol=tolerance, atol=tolerance)


def test_refused() -> None:
    """What cannot be known, and what is not there, is said."""
    a = np.zeros(4, np.uint8)
    order = ["a", "as", "", "b", "bs", "", "ys", ""]
    model = node_model("QLinearAdd", {"a": a}, order, {"b": a} | scales(**{"as": 1, "bs": 1, "ys": 1}), a.dtype)
    with pytest.raises(UserError, match="no zero point"):
        to_torch(model)
    x, w = np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 1, 3, 3), np.float32)
    with pytest.raises(UserError, match="'activation' should be one of Clip"):
        to_torch(node_model("FusedConv", {"x": x}, ["x", "w"], {"w": w}, FLOAT, activation="Wild"))
    with pytest.raises(UserError, match="'transBatchA' should be 0"):
        to_torch(node_model("FusedMatMul", {"x": x}, ["x", "w"], {"w": w}, FLOAT, transBatchA=1))
