"""Rounding that has a gradient, and a switch by which the roundings of a network are left out."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_left_out: ContextVar[bool] = ContextVar("roundings are left out", default=False)


class _Round(torch.autograd.Function):
    """Half to even, and the identity backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def rounded(x: Tensor) -> Tensor:
    """`x` as whole numbers; its gradient passes straight through. Inside `without_rounding` it is `x` itself."""
    if _left_out.get():
        return x
    whole: Tensor = _Round.apply(x)
    return whole


@contextmanager
def without_rounding(on: bool = True) -> Iterator[None]:
    """Let `rounded` change nothing while this is open, if `on`."""
    token = _left_out.set(on)
    try:
        yield
    finally:
        _left_out.reset(token)
