"""A limit to constant folding: a few bytes of a file can ask for terabytes, by Expand, Range, Pad or an outer sum."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from dgad_tk.common import UserError

R = TypeVar("R")

LARGEST, TOTAL = 2**29, 2**33
"""Bytes of one folded constant, and of all of a conversion."""

_left: int | None = None
"""Bytes that the conversion under way may still fold; None when none is, since a twin's own runs have no limit."""


@contextmanager
def limited(total: int | None = TOTAL) -> Iterator[None]:
    """While this is open, what `fold` computes is limited to so many bytes.

    None is for what takes no memory, on the meta device, and for what was counted already.
    """
    global _left
    before, _left = _left, total
    try:
        yield
    finally:
        _left = before


def fold(function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """`function(*args, **kwargs)` of known tensors; in a conversion, once the size of the result is seen.

    The size comes from the meta device, which computes shapes only. What depends on values cannot run there; it picks
    from what it is given and does not grow it.

    Raises:
        UserError: it would take too much memory.
    """
    global _left
    if _left is None:
        return function(*args, **kwargs)
    args_of_shape, kwargs_of_shape = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    left = _left
    try:
        with limited(None), torch.device("meta"), torch.no_grad():
            found = function(*args_of_shape, **kwargs_of_shape)
    except (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError):
        found = None
    tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > min(LARGEST, left):
        raise UserError(
            f"the twin would fold a constant of shape {list(tensors[0].shape)[:8]}, {size / 2**30:,.1f} GB",
            hint="no classifier needs that; the file may be damaged or hostile",
        )
    _left = left - size
    with limited(None):
        return function(*args, **kwargs)
