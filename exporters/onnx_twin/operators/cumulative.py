"""Running sums and products along an axis."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.tracing import deferred


@deferred
def _accumulate(x: Tensor, axis: Tensor | int, product: bool, exclusive: bool, backwards: bool) -> Tensor:
    """An exclusive one starts with the neutral element, and leaves out each entry itself."""
    axis = int(axis)
    if backwards:
        x = x.flip(axis)
    if exclusive:
        first = torch.full_like(x.narrow(axis, 0, 1), 1 if product else 0)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    x = torch.cumprod(x, axis, dtype=x.dtype) if product else torch.cumsum(x, axis, dtype=x.dtype)
    return x.flip(axis) if backwards else x


def _cumulative(product: bool) -> Callable[..., Tensor]:
    def accumulate(node: NodeView, x: Tensor, axis: Tensor) -> Tensor:
        exclusive, backwards = bool(node.attribute("exclusive", 0)), bool(node.attribute("reverse", 0))
        return _accumulate(x, int(axis) if isinstance(axis, Tensor) else axis, product, exclusive, backwards)

    return accumulate


OPERATORS: dict[str, Callable[..., Any]] = {
    "CumProd": _cumulative(product=True),
    "CumSum": _cumulative(product=False),
}
