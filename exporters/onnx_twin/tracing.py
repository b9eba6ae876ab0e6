"""Recording torch calls into an fx graph, and running them at once where everything is known.

An operator of the table is written once, as torch calls on "tensors". While a graph is converted such a
tensor is either a real one, known already (an initializer, or anything computed from initializers); then
the call runs and its result is known too, and that is the constant folding. Or it is an `fx.Proxy` for a
tensor that only exists when the twin runs; then the call becomes a node. The annotations say `Tensor` for
both, since that is what an operator's author may think of, and `isinstance(value, Tensor)` tells a known
one.

Folding is limited: a few bytes of a file can ask for terabytes, by Expand, Range, Pad or an outer sum.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from keyword import iskeyword
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, map_arg
from torch.utils._pytree import tree_leaves, tree_map_only

from dgad_tk.common import UserError

P = ParamSpec("P")
R = TypeVar("R")

LARGEST, TOTAL = 2**29, 2**33
"""Bytes of one folded constant, and of all of a conversion."""

EXAMPLES = "examples"
"""Key in a node's meta: what it gives for each of two example inputs, on the meta device; None if that is unknown."""


class Recorder(fx.proxy.GraphAppendingTracer):
    """Appends nodes to a graph, turns known tensors into buffers when a node needs them, and keeps examples.

    Examples hold no data, only ranks, sizes and dtypes. The first is a hint: an operator must be right without it. The
    second differs from it in its batch, and says which sizes do not depend on that.
    """

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(graph)
        self.constants: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        self._nodes: dict[int, fx.Node] = {}
        self._kept: list[Tensor] = []  # an id is only a name while its tensor lives

    def suggest(self, tensor: Tensor, name: str) -> None:
        """Name the buffer that `tensor` becomes, if it becomes one, after its value in the ONNX graph."""
        if id(tensor) not in self._names:
            self._names[id(tensor)] = name
            self._kept.append(tensor)

    def placeholder(self, name: str, examples: tuple[Tensor | None, Tensor | None]) -> fx.Proxy:
        """The graph's input."""
        node = self.graph.placeholder(_identifier(name))
        node.meta[EXAMPLES] = examples
        return fx.Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta[EXAMPLES] = _example(node, 0), _example(node, 1)
        return node

    def create_arg(self, a: Any) -> Argument:
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        self.suggest(a, "constant")
        if id(a) not in self._nodes:
            stem = name = _identifier(self._names[id(a)])
            count = 1
            while name in self.constants:
                count += 1
                name = f"{stem}_{count}"
            self.constants[name] = a
            node = self.graph.get_attr(name)
            node.meta[EXAMPLES] = (a.to("meta"),) * 2
            self._nodes[id(a)] = node
        return self._nodes[id(a)]


def call(function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """`function(*args, **kwargs)`, now if every argument is known, else as one node of the graph."""
    proxy = _proxy_in((args, kwargs))
    if proxy is None:
        return _fold(function, *args, **kwargs)
    return cast(R, proxy.tracer.create_proxy("call_function", function, args, kwargs))


def deferred(function: Callable[P, R]) -> Callable[P, R]:
    """Make `function` one node of the graph, so that it sees ranks, sizes and dtypes when the twin runs.

    The node calls what is returned here and not `function` itself: a pickled twin looks its functions up by name, and
    is traced anew when it is read.
    """

    @wraps(function)
    def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
        known = _proxy_in((args, kwargs)) is None
        return _fold(function, *args, **kwargs) if known else call(recorded, *args, **kwargs)

    return recorded


_left: int | None = None
"""Bytes that the conversion under way may still fold; None when none is, since a twin's own runs have no limit."""


@contextmanager
def limited(total: int | None = TOTAL) -> Iterator[None]:
    """While this is open, what is folded is limited to so many bytes.

    None is for what takes no memory, on the meta device, and for what was counted already.
    """
    global _left
    before, _left = _left, total
    try:
        yield
    finally:
        _left = before


def _fold(function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """`function(*args, **kwargs)` of known tensors; in a conversion, once the size of the result is seen.

    The size comes from the meta device, which computes shapes only. What depends on values cannot run there; it picks
    from what it is given and does not grow it.
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


def _proxy_in(values: Any) -> fx.Proxy | None:
    """The first proxy among `values`, or in a list, tuple or dict among them."""
    return next((leaf for leaf in tree_leaves(values) if isinstance(leaf, fx.Proxy)), None)


def example(value: Tensor) -> Tensor | None:
    """A tensor of `value`'s rank and dtype (its sizes may differ in a run), or None if they are unknown."""
    return _example_of(value, 0)


def rank(value: Tensor) -> int | None:
    """`value`'s number of dimensions, or None where that is unknown."""
    found = example(value)
    return None if found is None else found.dim()


def fixed_sizes(value: Tensor) -> list[int | None] | None:
    """`value`'s sizes, None where one may depend on the batch; None if not even the rank is known."""
    first, second = _example_of(value, 0), _example_of(value, 1)
    if first is None:
        return None
    if second is None or second.dim() != first.dim():
        return [None] * first.dim()
    return [size if size == other else None for size, other in zip(first.shape, second.shape, strict=True)]


def _example_of(value: Tensor, which: int) -> Tensor | None:
    if isinstance(value, fx.Proxy):
        found = value.node.meta[EXAMPLES][which]
        return found if isinstance(found, Tensor) else None
    return value


def _example(node: fx.Node, which: int) -> Any:
    """What `node` gives on its arguments' examples."""
    if any(argument.meta[EXAMPLES][which] is None for argument in node.all_input_nodes):
        return None
    args = map_arg(node.args, lambda argument: argument.meta[EXAMPLES][which])
    kwargs = map_arg(node.kwargs, lambda argument: argument.meta[EXAMPLES][which])
    try:
        with torch.no_grad(), limited(None):
            if isinstance(node.target, str):
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            return node.target(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError):
        return None  # the example's sizes were guessed, and what depends on data cannot run on the meta device


_TAKEN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))) | {"self"}
"""Names that a weight cannot have as a buffer, such as `half`, which is a method of every module."""


def _identifier(name: str) -> str:
    """`name` as a Python identifier: `layer1.0.conv1.weight` becomes `layer1_0_conv1_weight`."""
    name = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "constant"
    if iskeyword(name) or name in _TAKEN:
        return f"{name}_"
    return f"_{name}" if name[0].isdigit() else name
