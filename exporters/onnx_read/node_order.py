"""Nodes of an ONNX graph in an order in which each comes after those that it reads."""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import chain

from onnx import GraphProto, NodeProto

from exporters.onnx_read.parts import graphs, inner_graphs


def sort_nodes(graph: GraphProto) -> None:
    """Sort the nodes of `graph` and of the graphs inside them, in place; one with a cycle is left as it is.

    ONNX asks for the order, ONNX Runtime does not, and some converters (onnxruntime's own to float16) append nodes at
    the end that the first one reads. A graph in order is not touched.
    """
    for each in reversed(list(graphs(graph))):  # a node that moves is a copy, and takes the graphs in it along
        _sort(each)


def _sort(graph: GraphProto) -> None:
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = {
        index: sorted({makers[name] for name in names_read(node) if name in makers})
        for index, node in enumerate(graph.node)
    }
    if all(not needed or needed[-1] < index for index, needed in needs.items()):
        return
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError:
        return
    nodes = [NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def names_read(node: NodeProto) -> Iterator[str]:
    """Names that a node reads, also from within its subgraphs."""
    yield from node.input
    for inner in chain.from_iterable(map(graphs, inner_graphs(node))):
        for each in inner.node:
            yield from each.input
        yield from (value.name for value in inner.output)
