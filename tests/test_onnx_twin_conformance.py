"""The twin's operators one by one, judged by the cases that the onnx package ships for backends."""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

from dgad_tk.common import UserError
from exporters.onnx_twin import to_torch
from exporters.onnx_twin.graph import operator_key
from exporters.onnx_twin.operators import OPERATORS
from exporters.onnx_twin.tensors import DTYPES, from_proto

FLOOR = 932
"""Cases that pass with onnx 1.23."""

UNSIGNED = {TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64}
"""torch stores them and does not calculate with them."""

REFUSED = {
    "test_batchnorm_epsilon_training_mode",
    "test_batchnorm_example_training_mode",
    "test_training_dropout",
    "test_training_dropout_default",
    "test_training_dropout_default_mask",
    "test_training_dropout_mask",
    "test_training_dropout_zero_ratio",
    "test_training_dropout_zero_ratio_mask",
}
"""Training is not what the twin is for."""


@cache
def cases() -> list[Any]:
    """The node cases that only use operators of the table, and types that torch has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the cases are computed here, overflows and all
        found = load_model_tests(kind="node")
    models = [(case, case.model) for case in found]
    return [case for case, model in models if model and operators(model) <= set(OPERATORS) and has_types(model)]


def operators(model: onnx.ModelProto) -> set[str]:
    return {operator_key("" if node.domain == "ai.onnx" else node.domain, node.op_type) for node in model.graph.node}


def has_types(model: onnx.ModelProto) -> bool:
    """Every input and output is a tensor of a type that the twin has."""
    infos = [*model.graph.input, *model.graph.output]
    kinds = {info.type.tensor_type.elem_type if info.type.HasField("tensor_type") else -1 for info in infos}
    return kinds <= set(DTYPES) - UNSIGNED


def as_proto(value: Any, name: str) -> TensorProto:
    """An input or output of a case: an array, or a tensor already where NumPy lacks the type."""
    proto = TensorProto()
    proto.CopyFrom(value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value)))
    proto.name = name
    return proto


def twin_case(case: Any) -> tuple[onnx.ModelProto, torch.Tensor]:
    """The case with one input left to the run, the first that is float, and its value; the others become constants."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    arrays = case.data_sets[0][0]
    infos = list(model.graph.input)
    if not infos:
        model.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))
        return model, torch.zeros(1)
    chosen = next(
        (index for index, array in enumerate(arrays) if getattr(array, "dtype", np.dtype(bool)).kind == "f"), 0
    )
    protos = [as_proto(array, info.name) for info, array in zip(infos, arrays, strict=True)]
    model.graph.initializer.extend(proto for index, proto in enumerate(protos) if index != chosen)
    return model, from_proto(protos[chosen])


def outcomes() -> Iterator[tuple[Any, str]]:
    """Each case with what went wrong, or an empty string."""
    for case in cases():
        model, x = twin_case(case)
        try:
            actual = to_torch(model)(x)
        except UserError as error:
            yield case, f"refused: {error.message}"
            continue
        expected = from_proto(as_proto(case.data_sets[0][1][0], "expected"))
        half = expected.dtype in (torch.float16, torch.bfloat16)  # the reference rounds in another order
        rtol, atol = (2e-2, 1e-3) if half else (case.rtol, max(case.atol, 1e-6))
        try:
            torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
        except AssertionError as error:
            yield case, str(error)
        else:
            yield case, ""


def test_node_cases() -> None:
    """All pass but those that train; every row of the table has at least one."""
    wrong, refused, seen, passed = {}, set(), set(), 0
    for case, problem in outcomes():
        if problem.startswith("refused"):
            refused.add(case.name)
        if problem and case.name not in REFUSED:
            wrong[case.name] = problem
        if not problem:
            passed += 1
            seen |= operators(case.model)
    print(f"{passed} node cases pass, {len(refused)} are refused")
    assert wrong == {}
    assert refused == REFUSED
    assert set(OPERATORS) - seen == set()
    assert passed >= FLOOR
