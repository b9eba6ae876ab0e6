"""Integers that torch stores and hardly calculates with: uint16, uint32 and uint64."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.tracing import call, example

WIDENED = (torch.uint16, torch.uint32)


def widened(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`operator` calculated in int64, which holds all of uint16 and uint32; uint64 is refused."""

    @wraps(operator)
    def calculate(node: NodeView, *inputs: Tensor) -> Tensor:
        dtypes = [_dtype(x) for x in inputs]
        if torch.uint64 in dtypes:
            node.refuse("torch does not calculate with uint64")
        if not any(dtype in WIDENED for dtype in dtypes):
            return operator(node, *inputs)
        wide = (
            call(Tensor.to, x, torch.int64) if dtype in WIDENED else x for x, dtype in zip(inputs, dtypes, strict=True)
        )
        result = operator(node, *wide)
        return call(Tensor.to, result, dtypes[0]) if _dtype(result) is torch.int64 else result

    return calculate


def _dtype(x: Any) -> torch.dtype | None:
    found = example(x)
    return None if found is None else found.dtype
