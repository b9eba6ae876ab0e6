"""Types and shapes between the nodes of a graph, as far as ONNX's own inference knows them."""

import onnx
from onnx import ModelProto, TypeProto, helper
from onnx.defs import SchemaError, get_schema
from onnx.shape_inference import InferenceError, infer_node_outputs, infer_shapes

from exporters.onnx_read.parts import own_domain

Types = dict[str, TypeProto]


def inferred_types(model: ModelProto) -> Types:
    """Types of the values in a graph, by name: its inputs, its outputs, and what it computes between them.

    ONNX gives up a whole graph over one node that ONNX Runtime may well run. Then each node is asked by itself, so that
    one that ONNX cannot read hides nothing of the others.
    """
    try:
        graph = infer_shapes(model).graph
    except (InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return _by_node(model)
    return {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}


def _by_node(model: ModelProto) -> Types:
    """The same, node by node, in the order of the graph; without what stands inside functions."""
    opsets = {own_domain(entry.domain): entry.version for entry in model.opset_import}
    known: Types = {value.name: value.type for value in model.graph.input}
    data = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in data.items():
        known.setdefault(name, helper.make_tensor_type_proto(tensor.data_type, tensor.dims))
    for node in model.graph.node:
        domain = own_domain(node.domain)
        if not all(name in known for name in node.input if name):
            continue
        try:
            schema = get_schema(node.op_type, opsets.get(domain, 1), domain)
            types = {name: known[name] for name in node.input if name}
            values = {name: data[name] for name in node.input if name in data}
            known.update(infer_node_outputs(schema, node, types, values, opset_imports=list(model.opset_import)))
        except (SchemaError, InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
            continue
        if node.op_type == "Constant" and not domain:
            data.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
    return known
