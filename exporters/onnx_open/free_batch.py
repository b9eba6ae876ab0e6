"""Graphs that were written for a fixed batch size, rewritten for any.

ONNX Runtime still judges by the file as it is. The rewritten graph is for the twin, and for sessions that do not judge.
An exporter writes the batch size into the sizes of Reshape and Expand, and into constants that are joined to images. A
batch that was fixed at 1 becomes free like this:

    Reshape(x, [1, -1])              Reshape(x, [-1, 256])         x is (1, 16, 4, 4), so images come first
    Reshape(x, [17, 4, 8])           Reshape(x, [17, -1, 8])       x is (17, 1, 32): heads join the batch
    Expand(x, [1, 17, 16])           Expand(x, [1, 17, 16])        1 leaves an axis as it is
    Concat(token, x)                 Concat(Gather(token, zeros), x)   as many zeros as x has images
    Shape(x) -> Gather -> Reshape    as it is: the size is read when the graph runs

`free_batch` runs the twin to see whether that was all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, fx, nn

from dgad_tk.common import UserError
from exporters.onnx_twin import to_torch
from exporters.onnx_twin.tensors import image_of
from exporters.onnx_twin.tracing import example, fixed_sizes

TOLERANCE = 1e-4
"""On logits in float32, relative to their spread within an image, the largest less the smallest."""
ROUNDING = 4
"""Steps of the type at the largest logit that an order of summing may differ by."""
GRADIENT_TOLERANCE = 1e-2
"""On gradients, relative to the largest entry: a rounding can flip a ReLU, images that mix differ by more."""


class InParts(nn.Module):
    """A module that takes one batch size, for any number of images. Returns `(N, K)`.

    Args:
        module: takes batches of exactly `batch` images.
        batch: None where `module` takes one image, without an axis for the batch.
        mapped: run all batches at once by `torch.vmap`, which not every operator can be. Else one after the other.
    """

    def __init__(self, module: nn.Module, batch: int | None, *, mapped: bool = False) -> None:
        super().__init__()
        self.module, self.batch, self.mapped = module, batch, mapped

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        if self.batch is not None:
            if lacking := -count % self.batch:
                x = torch.cat([x, x[-1:].expand(lacking, *x.shape[1:])])
            x = x.reshape(-1, self.batch, *x.shape[1:])
        parts: Tensor = torch.vmap(self.module)(x) if self.mapped else torch.stack([self.module(part) for part in x])
        return parts.reshape(len(x) * (self.batch or 1), -1)[:count]


def free_batch(
    model: ModelProto | None, twin: nn.Module, batch: int, images: Callable[[int], Tensor], *, folded: bool = True
) -> tuple[nn.Module, bool]:
    """The twin of a graph for any number of images, and whether it takes them at once.

    Args:
        model: the graph; None where it has no axis for the batch.
        twin: its twin, which takes batches of exactly `batch` images.
        images: gives so many different images, as the twin takes them.
        folded: as for `to_torch`.

    Returns:
        The first of these that computes the same as `twin` batch by batch, in logits and gradients: the twin of the
        rewritten graph; `twin` mapped over batches; `twin` batch by batch, which is as right, and slower.
    """
    in_parts = InParts(twin, batch)
    other = next(size for size in (3, 5) if size != batch)
    ways: list[Callable[[], nn.Module]] = [lambda: InParts(twin, batch, mapped=True)]
    if model is not None:
        ways.insert(0, lambda: freed(model, images(batch).shape, folded=folded)[1])
    for way in ways:
        try:
            found = way()
            if _same(found, in_parts, images(other)):
                return found, True
        except (UserError, RuntimeError, ValueError, TypeError, IndexError):
            continue  # shapes that do not fit: the batch size is written where it cannot be told from other sizes
    return in_parts, False


def freed(model: ModelProto, shape: Sequence[int], *, folded: bool = True) -> tuple[ModelProto, fx.GraphModule]:
    """The graph up to its first output, rewritten for any number of images, and its twin. Neither has been run.

    Args:
        model: with its tensors inside and without functions. It is not changed.
        shape: of its input, with the batch that it was written for in front.
        folded: as for `to_torch`.

    Raises:
        UserError: it has no twin, or its nodes do not fit such an input.
    """
    free = ModelProto()
    free.CopyFrom(model)
    image = image_of(free.graph)
    kind = image.type.tensor_type.elem_type
    image.CopyFrom(helper.make_tensor_value_info(image.name, kind, shape))
    rewriting = _Rewriting(shape[0])
    twin = to_torch(free, rewriting.run, folded=folded)
    image.CopyFrom(helper.make_tensor_value_info(image.name, kind, ["batch", *shape[1:]]))
    del free.graph.node[:], free.graph.value_info[:]
    free.graph.node.extend(rewriting.nodes)
    del free.graph.output[1:]
    for size in free.graph.output[0].type.tensor_type.shape.dim:
        size.Clear()
    return free, twin


class _Rewriting:
    """Goes through the nodes of a graph and replaces those that allow only one number of images.

    The walk that makes the twin runs each node on two examples without data: one of `batch` images, for which the graph
    was written, one of another number. The axis in which they differ counts images.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.nodes: list[NodeProto] = []
        self.outer: dict[str, int] = {}
        """For a tensor with an axis that joins something with images, such as heads: how many of that."""

    def run(self, nodes: Iterable[NodeProto], values: Mapping[str, Any]) -> Iterator[NodeProto]:
        """Yields each node, then its replacement, if any. `values` holds the results of all nodes yielded before."""
        changes = {"Reshape": self._reshape, "Expand": self._expand, "Concat": self._concat}
        for node in nodes:
            yield node
            changed = changes[node.op_type](node, values) if node.op_type in changes else []
            yield from changed
            self.nodes += changed or [node]
            self._inherit(node, values)

    def _inherit(self, node: NodeProto, values: Mapping[str, Any]) -> None:
        """What is not reshaped keeps how its axes are made up, wherever they go."""
        for made in node.output:
            images = _shape(values.get(made)).images
            for given in node.input:
                if given in self.outer and images is not None and _shape(values[given]).images == images:
                    self.outer.setdefault(made, self.outer[given])

    def _reshape(self, node: NodeProto, values: Mapping[str, Any]) -> list[NodeProto]:
        data, (answer,) = _shape(values[node.input[0]]), node.output
        if data.axis is None:
            return []
        # Entries keep their order, so as many lie ahead of the images' own axis as before.
        ahead = prod(data.sizes[: data.axis]) * self.outer.get(node.input[0], 1)
        place = place_batch(_shape(values[answer]).sizes, self.batch, ahead)
        if place is None:
            return []
        axis, outer = place
        if outer > 1:
            self.outer[answer] = outer
        return self._resized(node, values, axis, -1)

    def _expand(self, node: NodeProto, values: Mapping[str, Any]) -> list[NodeProto]:
        data, answer = _shape(values[node.input[0]]), _shape(values[node.output[0]])
        if data.axis is None:
            return []
        # ONNX aligns shapes at their end.
        return self._resized(node, values, data.axis + len(answer.sizes) - len(data.sizes), 1)

    def _resized(self, node: NodeProto, values: Mapping[str, Any], axis: int, size: int) -> list[NodeProto]:
        """`node` with `size` on `axis` of its target; nothing where that axis counts images already."""
        answer = _shape(values[node.output[0]])
        if axis < 0 or answer.axis == axis or not isinstance(values[node.input[-1]], Tensor):
            return []
        resized = NodeProto()
        resized.CopyFrom(node)
        resized.input[1] = f"{node.output[0]}/sizes"
        return [_constant(resized.input[1], [*answer.sizes[:axis], size, *answer.sizes[axis + 1 :]]), resized]

    def _concat(self, node: NodeProto, values: Mapping[str, Any]) -> list[NodeProto]:
        """`node` with each constant that has an entry per image, such as a class token, for any number of images."""
        like = next((name for name in node.input if _shape(values[name]).axis is not None), "")
        axis, images = _shape(values.get(like)).axis, _shape(values.get(like)).images
        joined, repeated = NodeProto(), []
        joined.CopyFrom(node)
        for place, name in enumerate(node.input):
            value = values[name]
            if axis is not None and isinstance(value, Tensor) and value.shape[axis] == images:
                joined.input[place] = f"{node.output[0]}/{place}"
                repeated += _repeated(name, like, axis, joined.input[place])
        return [*repeated, joined] if repeated else []


def _repeated(name: str, like: str, axis: int, result: str) -> list[NodeProto]:
    """The first slice of a tensor on `axis`, as often as another has slices there."""
    place, sizes, count, zeros = (f"{result}/{part}" for part in ("axis", "sizes", "count", "zeros"))
    zero = numpy_helper.from_array(np.zeros(1, np.int64))
    return [
        _constant(place, [axis]),
        helper.make_node("Shape", [like], [sizes]),
        helper.make_node("Gather", [sizes, place], [count], axis=0),
        helper.make_node("ConstantOfShape", [count], [zeros], value=zero),
        helper.make_node("Gather", [name, zeros], [result], axis=axis),
    ]


def _constant(name: str, numbers: list[int]) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(numbers, np.int64), name))


class _Shape(NamedTuple):
    """The shape of a value at the batch that the graph was written for.

    Attributes:
        sizes: empty where they are unknown.
        axis: the one that grows with the number of images; None where none or several do.
    """

    sizes: tuple[int, ...] = ()
    axis: int | None = None

    @property
    def images(self) -> int | None:
        """The size of that axis."""
        return None if self.axis is None else self.sizes[self.axis]


def _shape(value: Any) -> _Shape:
    is_tensor: bool = isinstance(value, Tensor | fx.Proxy)
    known, sizes = (example(value), fixed_sizes(value)) if is_tensor else (None, None)
    if known is None or sizes is None:
        return _Shape()
    return _Shape(tuple(known.shape), sizes.index(None) if sizes.count(None) == 1 else None)


def place_batch(target: Sequence[int], batch: int, ahead: int) -> tuple[int, int] | None:
    """The axis of a shape that counts images, and the size of what that axis joins with them, 1 for nothing.

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


def _same(found: nn.Module, in_parts: InParts, images: Tensor) -> bool:
    """Whether both give the same logits, and the same gradient of one image's logits with respect to all images."""
    results = []
    for module in (found, in_parts):
        x = images.detach().clone().requires_grad_()
        logits = module(x).reshape(len(x), -1)
        if logits.shape[1] == 1:  # one number per image is read against 0
            logits = torch.cat([logits, torch.zeros_like(logits)], dim=1)
        weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=logits.device)
        (gradient,) = torch.autograd.grad((logits[-1] * weights).sum(), x)
        results.append((logits.detach(), gradient))
    (ours, our_gradient), (theirs, their_gradient) = results
    if ours.shape != theirs.shape:
        return False
    spread = (theirs.amax(dim=1) - theirs.amin(dim=1)).max()
    rounding = ROUNDING * torch.finfo(theirs.dtype).eps * theirs.abs().max()
    same_logits = (ours - theirs).abs().max() <= TOLERANCE * spread + rounding
    same_gradient = (our_gradient - their_gradient).abs().max() <= GRADIENT_TOLERANCE * their_gradient.abs().max()
    return bool(same_logits) and bool(same_gradient)
