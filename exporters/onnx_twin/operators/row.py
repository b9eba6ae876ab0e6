"""What a row of the table of operators is, and the shortest way to write one.

    "Elu": row(F.elu, alpha=1.0),

says that the operator `Elu` is `F.elu` of its inputs and of its attribute `alpha`, which is 1.0 where a node has none.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.tracing import call

Operator = Callable[..., Any]
"""A function of a node and its inputs, None for one that is left out, to the output or a tuple of the outputs."""


def row(function: Callable[..., Any], *constants: Any, **attributes: Any) -> Operator:
    """An operator that is one function of its inputs, of `constants` and, by their names, of its attributes.

    Args:
        function: torch's, or one that is marked `deferred`.
        constants: come after the inputs.
        attributes: what each may be. A value is the default, and the attribute has its type; a bool says that ONNX's
            integer is a truth value. A type says that the node must have the attribute. A tuple has the words that are
            allowed; the first is the default.
    """

    def operator(node: NodeView, *inputs: Tensor | None) -> Any:
        read = {name: node.read(name, kind) for name, kind in attributes.items()}
        return call(function, *inputs, *constants, **read)

    return operator


def folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of inputs that joins them one by one; those that are left out are passed over."""
    return lambda node, *inputs: reduce(lambda a, b: call(function, a, b), (x for x in inputs if x is not None))
