"""The parts of an ONNX model, wherever they stand: graphs within nodes, nodes, tensors; and why a model is refused."""

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

LIMITS = "no image classifier needs that; docs/security.md names the limits"
DAMAGED = "copy it again, or export it again"

MOVING = frozenset(
    ("Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)
"""Operators that only move the numbers of their first input, Concat those of all."""


class Refused(Exception):
    """A model that is not opened.

    Args:
        reason: the first thing that is wrong with it.
        hint: what to do about that.
        valid: whether it may be a valid model all the same, and is refused for what it asks for or where it lies.
    """

    def __init__(self, reason: str, hint: str = LIMITS, *, valid: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.hint, self.valid = reason, hint, valid


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and those inside its nodes."""
    yield graph
    yield from inner_graphs(graph.node)


def inner_graphs(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """Those inside of `nodes`, and inside of them."""
    for node in nodes:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in _WITH_GRAPHS else ():
                yield from graphs(inner)


_WITH_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def nodes(owner: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """Every node, those of subgraphs included."""
    yield from owner.node
    for graph in inner_graphs(owner.node):
        yield from graph.node


def attributes(model: ModelProto) -> Iterator[tuple[NodeProto, AttributeProto]]:
    """Every attribute of every node, those of functions included."""
    for owner in (model.graph, *model.functions):
        for node in nodes(owner):
            for attribute in node.attribute:
                yield node, attribute


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor: weights, constants, and what sparse ones are made of."""
    for graph in graphs(model.graph):
        yield from graph.initializer
    for _, attribute in attributes(model):
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors
    for sparse in sparse_tensors(model):
        yield sparse.values
        yield sparse.indices


def sparse_tensors(model: ModelProto) -> Iterator[SparseTensorProto]:
    """Sparse weights and sparse constants.

    Raises:
        Refused: some stand where no operator has a sparse tensor.
    """
    for graph in graphs(model.graph):
        yield from graph.sparse_initializer
    for node, attribute in attributes(model):
        if attribute.type == AttributeProto.SPARSE_TENSOR and node.op_type == "Constant":
            yield attribute.sparse_tensor
        elif attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
            raise Refused(
                f"'{node.op_type}' has sparse tensors as an attribute, which are not read", "store them dense"
            )
