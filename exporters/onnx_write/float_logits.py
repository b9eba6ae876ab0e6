"""Logits of an INT8 graph: they leave in float32, as they were summed up.

Eight bits for logits make ties between classes and steps in every margin, and save nothing.
"""

import onnx

MOVING = {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that only move numbers, such as those behind a convolution whose 1x1 output is the logits."""
CLIPPING = {"Clip", "Relu"}


def logits_are_clipped(graph: onnx.GraphProto) -> bool:
    """Whether a float graph ends in an activation that ONNX Runtime's quantiser takes away.

    The pair of quantiser and dequantiser that stands there afterwards clips in its place, and has to stay.
    """
    makers = {output: node for node in graph.node for output in node.output}
    node = makers.get(graph.output[0].name)
    while node is not None and node.op_type in MOVING:
        node = makers.get(node.input[0])
    return node is not None and node.op_type in CLIPPING


def unquantise_logits(graph: onnx.GraphProto) -> None:
    """Take away, in place, the pairs of quantiser and dequantiser behind the last operator that computes."""
    makers = {output: node for node in graph.node for output in node.output}
    name = graph.output[0].name
    while (node := makers.get(name)) is not None:
        if node.op_type in MOVING:
            name = node.input[0]
            continue
        quantiser = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantiser is None or quantiser.op_type != "QuantizeLinear" or quantiser.input[0] not in makers:
            break
        if sum(name in other.input for other in graph.node) > 1:
            break  # something else goes on with the quantised value
        source = quantiser.input[0]
        graph.node.remove(node)
        for other in graph.node:  # the name of what is taken away passes to what it was made from
            for names in (other.input, other.output):
                names[:] = [name if each == source else each for each in names]
        if not any(quantiser.output[0] in other.input for other in graph.node):
            graph.node.remove(quantiser)
        makers = {output: other for other in graph.node for output in other.output}
    read = {wanted for node in graph.node for wanted in node.input}
    for unused in [each for each in graph.initializer if each.name not in read]:
        graph.initializer.remove(unused)
