"""One ONNX node, as the operators see it."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import onnx
import torch
from onnx import AttributeProto, GraphProto, NodeProto
from torch import Tensor

from dgad_tk.common import UserError
from exporters.onnx_read.parts import own_domain
from exporters.onnx_twin.tensors import HINT, dtype_of, from_proto

T = TypeVar("T")


class NodeView:
    """A node's attributes, opset and outputs.

    An operator has to read or ignore every attribute by name. The others are refused, since they would change the
    result unnoticed. What an operator does not get as it asks for it is refused too, by a UserError that names the
    node.

    Args:
        node: the node.
        opset: the version of its domain that the model imports.
        device: gives the device that the twin runs on, for tensors that are made while it runs.
        branch: runs a subgraph among the nodes around this one, and gives its outputs.
    """

    def __init__(
        self,
        node: NodeProto,
        opset: int,
        device: Callable[[], torch.device],
        branch: Callable[[GraphProto], tuple[Any, ...]],
    ) -> None:
        self.op_type = node.op_type
        self.domain = own_domain(node.domain)
        self.name = node.name
        self.opset = opset
        self.outputs = list(node.output)
        self.device = device
        self.branch = branch
        self._attributes = {attribute.name: attribute for attribute in node.attribute}
        self._unread = set(self._attributes)

    def attribute(self, name: str, default: T) -> T:
        """The attribute `name` as a Python value (a tensor as torch's), or `default` where the node has none.

        ONNX writes truth values as integers. Where `default` is a bool, they are read as one.
        """
        self._unread.discard(name)
        if name not in self._attributes:
            return default
        value = _decode(self._attributes[name])
        if isinstance(default, bool) and isinstance(value, int):
            value = bool(value)
        if default is not None and not isinstance(value, type(default)):
            self.refuse(f"attribute '{name}' should be of type {type(default).__name__}, got {value!r}")
        return value  # type: ignore[no-any-return]

    def required(self, name: str, type_: type[T]) -> T:
        """The attribute `name`, which the operator cannot do without."""
        value = self.attribute(name, None)
        if not isinstance(value, type_):
            self.refuse(f"attribute '{name}' should be of type {type_.__name__}, got {value!r}")
        return value

    def choice(self, name: str, *words: str) -> str:
        """The attribute `name`, one of `words`; the first of them where the node has none."""
        value = self.attribute(name, words[0])
        if value not in words:
            self.refuse(f"attribute '{name}' should be one of {', '.join(words)}, got '{value}'")
        return value

    def dtype(self, name: str) -> torch.dtype | None:
        """The element type that the attribute `name` asks for, or None where the node asks for none."""
        number = self.attribute(name, 0)
        return dtype_of(number, str(self)) if number else None

    def only(self, name: str, value: int) -> None:
        """Accept no other `value` of the attribute `name`, which is also its default."""
        if self.attribute(name, value) != value:
            self.refuse(f"attribute '{name}' should be {value}")

    def read(self, name: str, kind: Any) -> Any:
        """The attribute `name` as a row of the table asks for it: by a default, a type or a tuple of words."""
        if isinstance(kind, type):
            return self.required(name, kind)
        return self.choice(name, *kind) if isinstance(kind, tuple) else self.attribute(name, kind)

    def ignore(self, *names: str) -> None:
        """Accept these attributes whatever they say: they do not matter to inference."""
        self._unread.difference_update(names)

    def has(self, name: str) -> bool:
        """Whether the node carries the attribute `name`."""
        return name in self._attributes

    def axes(self, given: Tensor | None, since: int) -> list[int] | None:
        """Axes that are an attribute before opset `since` and an input from then on; None if there are none."""
        if self.opset < since:
            return self.attribute("axes", None)
        return None if given is None else self.constant(given, "axes").flatten().tolist()

    def constant(self, value: Tensor | None, what: str) -> Tensor:
        """`value`, which has to be known at conversion."""
        if not isinstance(value, Tensor):
            self.refuse(f"input '{what}' has to be a constant")
        return value

    def refuse(self, why: str) -> NoReturn:
        """Raise the error that the twin cannot run this node."""
        raise UserError(f"the twin cannot run {self}: {why}", hint=HINT)

    def check_read(self) -> None:
        """Refuse attributes that the operator did not read."""
        if self._unread:
            self.refuse("unknown attribute " + ", ".join(f"'{name}'" for name in sorted(self._unread)))

    def __str__(self) -> str:
        return describe(self.op_type, self.domain, self.opset, self.name)


def describe(op_type: str, domain: str, opset: int, name: str) -> str:
    """`'Foo' (domain 'ai.onnx', opset 18), node 'name'`."""
    return f"'{op_type}' (domain '{domain or 'ai.onnx'}', opset {opset}), node '{name}'"


def _decode(attribute: AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return from_proto(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return value
