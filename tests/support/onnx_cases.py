"""The cases that the onnx package ships for backends, and which of them are within the twin's reach."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from torch import Tensor

from exporters.onnx_twin.graph import operator_key
from exporters.onnx_twin.operators import OPERATORS
from exporters.onnx_twin.tensors import DTYPES, from_proto

TRAINING = {
    "test_batchnorm_epsilon_training_mode",
    "test_batchnorm_example_training_mode",
    "test_training_dropout",
    "test_training_dropout_default",
    "test_training_dropout_default_mask",
    "test_training_dropout_mask",
    "test_training_dropout_zero_ratio",
    "test_training_dropout_zero_ratio_mask",
}
"""Refused: training is not what the twin is for."""


UNSIGNED = {
    *(f"test_{name}_uint64" for name in ("add", "div", "max", "min", "mod", "mul", "pow_types_float32", "sub")),
    *(f"test_{name}_uint64" for name in ("equal", "greater", "greater_equal", "less", "less_equal")),
    *(f"test_{name}_uint64_expanded" for name in ("greater_equal", "less_equal")),
    *(f"test_{name}_uint64" for name in ("bitshift_left", "bitshift_right")),
}
"""Refused: torch does not calculate with uint64."""


@dataclass(frozen=True)
class Case:
    """A model with inputs, and the outputs that are expected of it."""

    name: str
    model: onnx.ModelProto
    inputs: list[TensorProto]
    outputs: list[TensorProto]
    rtol: float
    atol: float

    @property
    def operators(self) -> set[str]:
        nodes = self.model.graph.node
        return {operator_key("" if node.domain == "ai.onnx" else node.domain, node.op_type) for node in nodes}

    @property
    def unknown_types(self) -> set[str]:
        return {name for info in (*self.model.graph.input, *self.model.graph.output) if (name := unknown_type(info))}


def unknown_type(info: onnx.ValueInfoProto) -> str:
    """The type of an input or output if torch has none like it, else an empty string."""
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        return str(kind).removesuffix("_type")
    data_type = info.type.tensor_type.elem_type
    return "" if data_type in DTYPES else TensorProto.DataType.Name(data_type).lower()


@cache
def cases(kind: str) -> list[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # some cases are computed here, overflows and all
        found = load_model_tests(kind=kind)
    return [_in_memory(case) if case.model else _on_disk(case) for case in found]


def _in_memory(case: Any) -> Case:
    sets = [case.data_sets[0][0], case.data_sets[0][1]] if has_tensors(case.model) else [[], []]
    inputs, outputs = ([as_proto(value) for value in values] for values in sets)
    return Case(case.name, case.model, inputs, outputs, case.rtol, case.atol)


def has_tensors(model: onnx.ModelProto) -> bool:
    """Whether all inputs and outputs are tensors of a type that torch has."""
    return not any(unknown_type(info) for info in (*model.graph.input, *model.graph.output))


def _on_disk(case: Any) -> Case:
    folder = Path(case.model_dir)
    model = onnx.load(str(folder / "model.onnx"))
    inputs, outputs = (
        [as_proto(path.read_bytes()) for path in sorted(folder.glob(f"test_data_set_0/{what}_*.pb"))]
        for what in (("input", "output") if has_tensors(model) else ("none", "none"))
    )
    return Case(case.name, model, inputs, outputs, case.rtol, case.atol)


def as_proto(value: Any) -> TensorProto:
    """An input or output: an array, the bytes of a tensor, or one already where NumPy lacks the type."""
    proto = TensorProto()
    if isinstance(value, bytes):
        proto.ParseFromString(value)
    else:
        proto.CopyFrom(value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value)))
    return proto


FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def with_one_input(case: Case, output: int, kept: int | None = None) -> tuple[onnx.ModelProto, Tensor]:
    """The case's model with one output and one input, and that input's value; the other inputs become constants.

    Args:
        kept: which input; by default the first that is float. A branch is decided by a constant.
    """
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    wanted = model.graph.output[output]
    names = {proto.name for proto in model.graph.initializer}
    del model.graph.output[:]
    model.graph.output.append(wanted)
    protos = []
    for info, value in zip((i for i in model.graph.input if i.name not in names), case.inputs, strict=True):
        proto = as_proto(value)
        proto.name = info.name
        protos.append(proto)
    if kept is None and "If" not in case.operators:
        floats = [index for index, proto in enumerate(protos) if proto.data_type in FLOATS]
        kept = next(iter([*floats, *range(len(protos))]), None)
    model.graph.initializer.extend(proto for index, proto in enumerate(protos) if index != kept)
    if kept is None:
        model.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))
        return model, torch.zeros(1)
    return model, from_proto(protos[kept])


def in_scope(kind: str) -> Iterator[Case]:
    """The cases whose operators and types the twin has."""
    return (case for case in cases(kind) if case.operators <= set(OPERATORS) and not case.unknown_types)
