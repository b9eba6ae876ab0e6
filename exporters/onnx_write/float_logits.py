"""Logits of an INT8 graph: they leave in float32, as they were summed up.

Eight bits for logits make ties between classes and steps in every margin, and save nothing.
"""

import onnx

from exporters.onnx_read.parts import RESHAPING, computes, makers

CLIPPING = {"Clip", "Relu"}


def logits_are_clipped(graph: onnx.GraphProto) -> bool:
    """Whether a float graph ends in an activation that ONNX Runtime's quantiser takes away.

    The pair of quantiser and dequantiser that stands there afterwards clips in its place, and has to stay.
    """
    node = computes(makers(graph), graph.output[0].name)
    return node is not None and node.op_type in CLIPPING


def unquantise_logits(graph: onnx.GraphProto) -> None:
    """Remove, in place, the pairs of quantiser and dequantiser behind the last operator that computes."""
    made_by = makers(graph)
    name = graph.output[0].name
    while (node := made_by.get(name)) is not None:
        if node.op_type in RESHAPING:
            name = node.input[0]
            continue
        quantiser = made_by.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantiser is None or quantiser.op_type != "QuantizeLinear" or quantiser.input[0] not in made_by:
            break
        if sum(name in other.input for other in graph.node) > 1:
            break  # something else reads the quantised value
        source = quantiser.input[0]
        graph.node.remove(node)
        for other in graph.node:  # the value that is left gets the name of the removed one
            for names in (other.input, other.output):
                names[:] = [name if each == source else each for each in names]
        if not any(quantiser.output[0] in other.input for other in graph.node):
            graph.node.remove(quantiser)
        made_by = makers(graph)
    read = {wanted for node in graph.node for wanted in node.input}
    for unused in [each for each in graph.initializer if each.name not in read]:
        graph.initializer.remove(unused)
