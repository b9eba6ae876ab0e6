"""Twins of graphs that were written for a fixed batch size, made to take any.

ONNX Runtime goes on running such a file as it is; only the twin is changed. The batch size was written into the sizes
of Reshape and Expand and into constants that are joined to images. Whether that was all is found out by running it.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

TOLERANCE = 1e-4
"""On logits in float32, relative to their spread within an image, the largest less the smallest."""
ROUNDING = 4
"""Steps of the type at the largest logit that an order of summing may differ by."""
GRADIENT_TOLERANCE = 1e-2
"""On gradients, relative to the largest entry: a rounding can flip a ReLU, images that mix differ by more."""


class InParts(nn.Module):
    """A module that takes batches of exactly `batch` images, called as often as it takes. Returns `(N, K)`."""

    def __init__(self, module: nn.Module, batch: int) -> None:
        super().__init__()
        self.module, self.batch = module, batch

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        if lacking := -count % self.batch:
            x = torch.cat([x, x[-1:].expand(lacking, *x.shape[1:])])
        parts = x.reshape(-1, self.batch, *x.shape[1:])
        return self.rows(parts).reshape(len(x), -1)[:count]

    def rows(self, parts: Tensor) -> Tensor:
        """What the module gives for each of `parts`, `(P, batch, ...)`."""
        return torch.stack([self.module(part) for part in parts])


class Mapped(InParts):
    """The same by `torch.vmap`, which runs each operator once for all parts. Not every operator can be."""

    def rows(self, parts: Tensor) -> Tensor:
        found: Tensor = torch.vmap(self.module)(parts)
        return found


def free_batch(twin: nn.Module, batch: int, images: Callable[[int], Tensor]) -> tuple[nn.Module, bool]:
    """`twin` for any number of images, and whether it takes them at once.

    Args:
        twin: takes batches of exactly `batch` images.
        images: gives so many different images, as the twin takes them.

    Returns:
        The first of these that computes the same as the twin batch by batch, in logits and gradients: a changed copy
        that shares the weights; the twin mapped over batches; the twin batch by batch, which is as right, and slower.
    """
    in_parts = InParts(twin, batch)
    one, other = [size for size in (2, 3, 5) if size != batch][:2]
    ways: list[Callable[[], nn.Module]] = [lambda: Mapped(twin, batch)]
    if isinstance(twin, fx.GraphModule):
        ways.insert(0, lambda: _freed(twin, images(batch), images(one)))
    for way in ways:
        try:
            freed = way()
            if _same(freed, in_parts, images(other)):
                return freed, True
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue  # shapes that do not fit: the batch size is written where it cannot be told from other sizes
    return in_parts, False


def _freed(twin: fx.GraphModule, few: Tensor, more: Tensor) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.graph_copy(twin.graph, {}))
    freed = fx.GraphModule(twin, graph, type(twin).__name__)
    shapes = _Shapes(freed)
    with torch.no_grad():
        shapes.run(few)
        _Freeing(freed, len(few), shapes.found).run(more)
    graph.lint()
    freed.recompile()
    return freed.eval()


class _Shapes(fx.Interpreter):
    """Notes the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = result.shape
        return result


class _Freeing(fx.Interpreter):
    """Runs a graph with another number of images than it was written for, and changes on the way what forbids that.

    Args:
        batch: the number it was written for.
        shapes: of every tensor with that.
    """

    def __init__(self, module: fx.GraphModule, batch: int, shapes: dict[fx.Node, torch.Size]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.batch, self.shapes = batch, shapes
        self.outer: dict[fx.Node, int] = {}
        """Of tensors one of whose axes counts something and, within that, images: how much of the former."""

    def run_node(self, n: fx.Node) -> Any:
        name = getattr(n.target, "__name__", "") if n.op == "call_function" else ""
        if name == "reshape":
            self._reshape(n)
        elif name == "_expand":
            self._expand(n)
        elif name == "cat":
            self._cat(n)
        self.env[n] = super().run_node(n)
        if n not in self.outer:
            self._inherit(n)
        return self.env[n]

    def _batch_axis(self, node: Any) -> int | None:
        """The one axis of a tensor that has grown with the number of images."""
        now = self.env.get(node)
        if not isinstance(now, Tensor) or node not in self.shapes or now.dim() != len(self.shapes[node]):
            return None
        grown = [axis for axis, (old, new) in enumerate(zip(self.shapes[node], now.shape, strict=True)) if old != new]
        return grown[0] if len(grown) == 1 else None

    def _inherit(self, node: fx.Node) -> None:
        """What is not reshaped keeps how its axes are made up, wherever they go."""
        axis = self._batch_axis(node)
        for given in node.all_input_nodes:
            before = self._batch_axis(given) if given in self.outer else None
            if axis is not None and before is not None and self.shapes[given][before] == self.shapes[node][axis]:
                self.outer[node] = self.outer[given]

    def _reshape(self, node: fx.Node) -> None:
        data, sizes = cast(tuple[fx.Node, Any], node.args)
        axis = self._batch_axis(data)
        if axis is None or not isinstance(sizes, list | tuple) or any(isinstance(size, fx.Node) for size in sizes):
            return
        # Entries keep their order, so as many lie ahead of the images' own axis as before.
        ahead, target = prod(self.shapes[data][:axis]) * self.outer.get(data, 1), self.shapes[node]
        if (place := place_batch(target, self.batch, ahead)) is not None:
            axis, outer = place
            node.args = (data, [*target[:axis], -1, *target[axis + 1 :]])
            if outer > 1:
                self.outer[node] = outer

    def _expand(self, node: fx.Node) -> None:
        data, sizes = cast(tuple[fx.Node, Any], node.args)
        batch = self._batch_axis(data)
        if batch is None or not isinstance(sizes, list | tuple):
            return
        axis = batch + len(sizes) - len(self.shapes[data])  # ONNX aligns shapes at their end
        if axis >= 0:
            node.args = (data, [*sizes[:axis], 1, *sizes[axis + 1 :]])

    def _cat(self, node: fx.Node) -> None:
        """Constants that are joined to images, such as a class token, are repeated for each."""
        tensors = cast(list[fx.Node], node.args[0])
        growing = [(each, axis) for each in tensors if (axis := self._batch_axis(each)) is not None]
        if not growing:
            return
        like, axis = growing[0]
        joined = []
        for each in tensors:
            if self._batch_axis(each) is None and self.shapes[each][axis] == self.shapes[like][axis]:
                with node.graph.inserting_before(node):
                    repeated = node.graph.call_function(repeat_like, (each, like, axis))
                self.env[repeated] = super().run_node(repeated)
                joined.append(repeated)
            else:
                joined.append(each)
        node.args = (joined, *node.args[1:])


def place_batch(target: Sequence[int], batch: int, ahead: int) -> tuple[int, int] | None:
    """The axis of a shape that counts images, and how much of something else it counts outside of them.

    Args:
        target: with `batch` images.
        ahead: product of the sizes outside of the images.

    Returns:
        (1, 1) of (5, 3, 7) with 3 images behind 5, (0, 5) of (15, 7); None where there is no place for them.
    """
    starts = [prod(target[:axis]) for axis in range(len(target))]
    fits = [axis for axis, start in enumerate(starts) if start == ahead and target[axis] % batch == 0]
    own = [axis for axis in fits if target[axis] == batch]
    # The last axis holds features: where images may as well end the axis before it, they do.
    outside = own or [axis for axis in fits if axis == 0 or axis + 1 < len(target)]
    if outside:
        return outside[0], 1
    for axis, start in enumerate(starts):
        if start < ahead and ahead % start == 0 and (start * target[axis]) % (ahead * batch) == 0:
            return axis, ahead // start
    return None


def repeat_like(tensor: Tensor, like: Tensor, axis: int) -> Tensor:
    """The first slice of `tensor` on `axis`, as often as `like` has slices there."""
    sizes = list(tensor.shape)
    sizes[axis] = like.shape[axis]
    return tensor.narrow(axis, 0, 1).expand(sizes)


def _same(freed: nn.Module, in_parts: InParts, images: Tensor) -> bool:
    """Whether both give the same logits, and the same gradient of one image's logits with respect to all images."""
    results = []
    for module in (freed, in_parts):
        x = images.detach().clone().requires_grad_()
        logits = module(x).reshape(len(x), -1)
        weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=logits.device)
        (gradient,) = torch.autograd.grad((logits[-1] * weights).sum(), x)
        results.append((logits.detach(), gradient))
    (ours, our_gradient), (theirs, their_gradient) = results
    if ours.shape != theirs.shape or our_gradient.shape != their_gradient.shape:
        return False
    spread = (theirs.amax(dim=1) - theirs.amin(dim=1)).max()
    rounding = ROUNDING * torch.finfo(theirs.dtype).eps * theirs.abs().max()
    same_logits = (ours - theirs).abs().max() <= TOLERANCE * spread + rounding
    same_gradient = (our_gradient - their_gradient).abs().max() <= GRADIENT_TOLERANCE * their_gradient.abs().max()
    return bool(same_logits) and bool(same_gradient)
