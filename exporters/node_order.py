"""Nodes of an ONNX graph in an order in which each comes after those that it reads."""

from collections.abc import Iterator

from onnx import GraphProto, NodeProto


def sort_nodes(graph: GraphProto) -> None:
    """Sort the nodes of `graph`, in place and stably; a graph with a cycle is left as it is.

    ONNX asks for the order, ONNX Runtime does not, and some converters (onnxruntime's own to float16) append nodes at
    the end that the first one reads.
    """
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{makers[name] for name in _reads(node) if name in makers} for node in graph.node]
    if all(max(needed, default=-1) < index for index, needed in enumerate(needs)):
        return
    order: list[int] = []
    done: set[int] = set()
    for first in range(len(needs)):
        path = [first]  # what waits for the last of it
        waiting = {first}
        while path:
            missing = next((index for index in sorted(needs[path[-1]]) if index not in done), None)
            if missing is None:
                index = path.pop()
                waiting.discard(index)
                if index not in done:
                    done.add(index)
                    order.append(index)
            elif missing in waiting:
                return
            else:
                path.append(missing)
                waiting.add(missing)
    nodes = [NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _reads(node: NodeProto) -> Iterator[str]:
    """Names that a node reads, also from within its subgraphs."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in inner.node:
                yield from _reads(each)
            yield from (value.name for value in inner.output)
