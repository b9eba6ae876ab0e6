"""Control flow that is decided at conversion."""

from collections.abc import Callable
from typing import Any

from onnx import GraphProto
from torch import Tensor

from exporters.onnx_twin.node import NodeView


def if_(node: NodeView, condition: Tensor) -> Any:
    """The branch that is taken, in place of the node."""
    taken = "then_branch" if node.constant(condition, "cond").item() else "else_branch"
    node.ignore("then_branch", "else_branch")
    return node.branch(node.required(taken, GraphProto))


OPERATORS: dict[str, Callable[..., Any]] = {"If": if_}
