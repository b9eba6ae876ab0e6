"""Walks over an ONNX model: its graphs within nodes, its nodes in order, its tensors; and why a model is refused."""

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    numpy_helper,
)
from onnx.inliner import inline_local_functions

from dgad_tk.common import UserError, reason_of

LIMITS = "no image classifier needs that; docs/security.md names the limits"
DAMAGED = "copy it again, or export it again"

RESHAPING = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
"""Operators that move all numbers of their first input and change none."""
MOVING = RESHAPING | {"Concat", "Gather", "Slice", "Split"}
"""Operators that move numbers, all or some, of their first input or of all inputs, and change none."""
PASSING_ON = RESHAPING | {"Cast", "Dropout"}
"""Operators that may follow the last computation of a classifier and keep its numbers."""


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


def own_domain(domain: str) -> str:
    """The name of a domain of operators; ONNX's own has two."""
    return "" if domain == "ai.onnx" else domain


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node has as attributes: branches, and bodies of loops."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def nodes(owner: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """Every node, those of the graphs inside nodes included."""
    for node in owner.node:
        yield node
        for inner in inner_graphs(node):
            yield from nodes(inner)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph`, and those inside its nodes."""
    yield graph
    for node in nodes(graph):
        yield from inner_graphs(node)


def names_read(node: NodeProto) -> Iterator[str]:
    """Names that a node reads, also from within its subgraphs."""
    yield from node.input
    for inner in inner_graphs(node):
        for each in inner.node:
            yield from names_read(each)
        yield from (value.name for value in inner.output)


def sort_nodes(graph: GraphProto) -> None:
    """Put each node of `graph`, and of the graphs inside it, behind those that it reads, in place.

    ONNX asks for this order, ONNX Runtime does not, and some converters (onnxruntime's own to float16) append nodes at
    the end that the first one reads. A graph in order is not touched, and a graph with a cycle stays as it is.
    """
    for each in reversed(list(graphs(graph))):  # a node that moves is a copy, and takes the graphs in it along
        made_by = {name: index for index, node in enumerate(each.node) for name in node.output if name}
        needs = {
            index: sorted({made_by[name] for name in names_read(node) if name in made_by})
            for index, node in enumerate(each.node)
        }
        if all(not needed or needed[-1] < index for index, needed in needs.items()):
            continue
        try:
            order = list(TopologicalSorter(needs).static_order())
        except CycleError:
            continue
        moved = [NodeProto.FromString(each.node[index].SerializeToString()) for index in order]
        del each.node[:]
        each.node.extend(moved)


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


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """The tensors that stand in a graph by name, among its weights or as the value of a node."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
    return found


def makers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that makes each value, by name."""
    return {name: node for node in graph.node for name in node.output}


def computes(made_by: Mapping[str, NodeProto], name: str) -> NodeProto | None:
    """The node that computes the numbers of a value, behind those that pass them on; None for an input or a weight."""
    node = made_by.get(name)
    while node is not None and node.op_type in PASSING_ON:
        node = made_by.get(node.input[0])
    return node


def answer_step(model: ModelProto, output: str) -> float:
    """The quantisation step of `output`, 0 where the last operator that computes gives floats."""
    node = computes(makers(model.graph), output)
    if node is None or node.op_type != "DequantizeLinear":
        return 0.0
    scale = constants(model.graph).get(node.input[1])
    return 0.0 if scale is None else float(numpy_helper.to_array(scale).max())


def is_made_by(model: ModelProto, output: str, *operators: str) -> bool:
    """Whether one of some operators computes the numbers of `output`."""
    node = computes(makers(model.graph), output)
    return node is not None and node.op_type in operators


def inlined(model: ModelProto) -> ModelProto:
    """`model` without functions of its own: they are written out where they are called, as ONNX Runtime reads them.

    A function may name other versions of the operator sets than the model does. ONNX Runtime runs its nodes in the
    model's versions all the same, and ONNX's inliner leaves such a function standing. So they are given the model's.

    Args:
        model: one that ONNX Runtime loads. It is not changed.

    Raises:
        UserError: they cannot be written out.
    """
    if not model.functions:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    versions = {own_domain(entry.domain): entry.version for entry in copy.opset_import}
    for function in copy.functions:
        for entry in function.opset_import:
            entry.version = versions.get(own_domain(entry.domain), entry.version)
    try:
        return inline_local_functions(copy)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"its functions cannot be written out: {reason_of(error)}", hint="export it without functions"
        ) from None
