"""Nodes of an ONNX graph in an order in which each comes after those that it reads."""

from collections.abc import Iterator

from onnx import GraphProto, NodeProto


def sort_nodes(graph: GraphProto) -> None:
    """Sort the nodes of `graph` and of the graphs inside them, in place; one with a cycle is left as it is.

    A node stays where it is unless a node ahead of it reads from it. ONNX asks for the order, ONNX Runtime does not,
    and some converters (onnxruntime's own to float16) append nodes at the end that the first one reads.
    """
    for node in graph.node:
        for inner in _subgraphs(node):
            sort_nodes(inner)
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [sorted({makers[name] for name in names_read(node) if name in makers}) for node in graph.node]
    if all(not needed or needed[-1] < index for index, needed in enumerate(needs)):
        return
    order = _sorted(needs)
    if order is None:
        return
    nodes = [NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _sorted(needs: list[list[int]]) -> list[int] | None:
    """Numbers in an order in which each comes after those that it needs; None if there is a cycle."""
    order: list[int] = []
    done: set[int] = set()
    for first in range(len(needs)):
        path = [(first, iter(needs[first]))] if first not in done else []  # each waits for one that comes after it
        waiting = {first}
        while path:
            index, left = path[-1]
            missing = next((each for each in left if each not in done), None)
            if missing is None:
                path.pop()
                waiting.discard(index)
                done.add(index)
                order.append(index)
            elif missing in waiting:
                return None
            else:
                path.append((missing, iter(needs[missing])))
                waiting.add(missing)
    return order


def names_read(node: NodeProto) -> Iterator[str]:
    """Names that a node reads, also from within its subgraphs."""
    yield from node.input
    for inner in _subgraphs(node):
        for each in inner.node:
            yield from names_read(each)
        yield from (value.name for value in inner.output)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
