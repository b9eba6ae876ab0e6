"""Integers as their bits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.unsigned import widened
from exporters.onnx_twin.tensors import dtype_of
from exporters.onnx_twin.tracing import call, deferred


@deferred
def _shift(x: Tensor, by: Tensor, left: bool) -> Tensor:
    """Shifted by a whole width or more, or by a negative number, only copies of the sign are left."""
    width = torch.iinfo(x.dtype).bits
    gone = (by < 0) | (by >= width)
    by = torch.where(gone, 0, by)
    if left:
        return torch.where(gone, 0, torch.bitwise_left_shift(x, by)).to(x.dtype)
    sign = torch.where(x < 0, -1, 0).to(x.dtype)
    return torch.where(gone, sign, torch.bitwise_right_shift(x, by))


def shift(node: NodeView, x: Tensor, by: Tensor) -> Tensor:
    direction = node.required("direction", str)
    if direction not in ("LEFT", "RIGHT"):
        node.refuse(f"attribute 'direction' should be LEFT or RIGHT, got '{direction}'")
    return _shift(x, by, direction == "LEFT")


def cast_bits(node: NodeView, x: Tensor) -> Tensor:
    return call(torch.Tensor.view, x, dtype_of(node.required("to", int), str(node)))


OPERATORS: dict[str, Callable[..., Any]] = {
    "BitCast": cast_bits,
    "BitShift": widened(shift),
    "BitwiseAnd": lambda node, a, b: call(torch.bitwise_and, a, b),
    "BitwiseNot": widened(lambda node, x: call(torch.bitwise_not, x)),
    "BitwiseOr": lambda node, a, b: call(torch.bitwise_or, a, b),
    "BitwiseXor": lambda node, a, b: call(torch.bitwise_xor, a, b),
}
