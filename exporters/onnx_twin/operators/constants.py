"""What is decided at conversion: constants, types and branches."""

from typing import Any

import torch
from onnx import GraphProto
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator
from exporters.onnx_twin.tensors import dtype_of
from exporters.onnx_twin.tracing import call, example

_CONSTANT_TYPES = {
    "value": None,
    "value_float": torch.float32,
    "value_floats": torch.float32,
    "value_int": torch.int64,
    "value_ints": torch.int64,
}


def constant(node: NodeView) -> Tensor:
    for name, dtype in _CONSTANT_TYPES.items():
        if node.has(name):
            value = node.attribute(name, None)
            return value if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)
    node.refuse("it has no value of a type that the twin has")


def cast(node: NodeView, x: Tensor) -> Tensor:
    node.ignore("saturate", "round_mode")  # they are about 8-bit floats, which are refused
    return _to(x, dtype_of(node.required("to", int), str(node)))


def cast_like(node: NodeView, x: Tensor, like: Tensor) -> Tensor:
    node.ignore("saturate", "round_mode")
    found = example(like)
    return call(Tensor.type_as, x, like) if found is None else _to(x, found.dtype)


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    found = example(x)
    if found is not None and found.dtype is dtype:
        return x  # as a node it would round a twin in double precision
    return call(Tensor.to, x, dtype)


def dropout(node: NodeView, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Any:
    node.ignore("ratio", "seed", "is_test")
    if training is not None and node.constant(training, "training_mode").item():
        node.refuse("training_mode is on")
    return x if len(node.outputs) == 1 else (x, call(torch.ones_like, x, dtype=torch.bool))


def if_(node: NodeView, condition: Tensor) -> Any:
    """The branch that is taken, in place of the node."""
    taken = "then_branch" if node.constant(condition, "cond").item() else "else_branch"
    node.ignore("then_branch", "else_branch")
    return node.branch(node.required(taken, GraphProto))


OPERATORS: dict[str, Operator] = {
    "Cast": cast,
    "CastLike": cast_like,
    "Constant": constant,
    "Dropout": dropout,
    "Identity": lambda node, x: x,
    "If": if_,
}
