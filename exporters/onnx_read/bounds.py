"""What an ONNX graph would take to run, judged before anything of it is loaded or run.

A file of a few bytes can ask for terabytes: a shape in front of ConstantOfShape, a tensor that claims more numbers than
it has, functions that call each other twice at every level, one piece of external data named a thousand times.
"""

import math
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, TensorProto, TypeProto, helper
from onnx.defs import SchemaError, get_schema
from onnx.external_data_helper import uses_external_data
from onnx.shape_inference import InferenceError, infer_node_outputs, infer_shapes

from exporters.onnx_read.external_data import check_external, shown_shape
from exporters.onnx_read.parts import DAMAGED, Refused, inner_graphs, nodes, own_domain, sparse_tensors, tensors

MAX_NODES = 100_000
"""With functions written out. Large vision models have 5,000."""
MAX_CALLS = 50
"""Functions that call each other, one within the other."""
MAX_TENSORS = 16 * 2**30
"""Bytes of external data."""
MAX_CONSTANTS = 512 * 2**20
"""Bytes of all that is computed from constants alone, unless the file is a sixteenth of that or more; and of sparse
tensors made dense."""
MAX_VALUE = 2**32
"""Bytes of one value between nodes, at the batch size that the graph names, else at 1."""
SMALL = 4096
"""Bytes of a constant that may be a shape; the numbers in a larger one do not matter to shapes."""

_PACKED: dict[int, int] = {TensorProto.UINT4: 2, TensorProto.INT4: 2, TensorProto.FLOAT4E2M1: 2} | {
    getattr(TensorProto, name): 4 for name in ("UINT2", "INT2") if hasattr(TensorProto, name)
}
"""Types of which a byte holds several numbers, and how many."""
_SIZED = {kind for kind in helper.get_all_tensor_dtypes() if kind != TensorProto.STRING}


def check_bounds(model: ModelProto, path: Path) -> None:
    """Check that tensors have the bytes that they claim, and that loading and running the graph takes no absurd memory.

    Args:
        model: without its external data.
        path: of its file.

    Raises:
        Refused: names the first thing that is wrong.
    """
    _check_nodes(model)
    most = max(MAX_CONSTANTS, 16 * (path.stat().st_size + _check_tensors(model, path)))
    dense = 0
    for sparse in sparse_tensors(model):
        kind, name = sparse.values.data_type, sparse.values.name
        if kind not in _SIZED or any(size < 0 for size in sparse.dims):
            raise Refused(f"the sparse tensor '{name}' has a shape or type that none can have", valid=False)
        dense += _bytes(kind, sparse.dims)
    if dense > most:
        raise Refused(f"its sparse tensors would take {dense / 2**30:,.1f} GB")
    _check_values(model, most)


def _check_nodes(model: ModelProto) -> None:
    """Check the number of nodes once functions are written out where they are called."""
    functions = {(each.domain, each.name): each for each in model.functions}
    calls = {key: [(node.domain, node.op_type) for node in nodes(function)] for key, function in functions.items()}
    needs = {key: [called for called in names if called in functions] for key, names in calls.items()}
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise Refused(f"function '{error.args[1][0][1]}' calls itself") from None
    counts: dict[tuple[str, str], int] = {}
    depths: dict[tuple[str, str], int] = {}
    for key in order:
        counts[key] = sum(counts.get(called, 1) for called in calls[key])
        depths[key] = 1 + max((depths[called] for called in needs[key]), default=0)
        if depths[key] > MAX_CALLS:
            raise Refused(f"more than {MAX_CALLS} functions call each other")
    total = sum(counts.get((node.domain, node.op_type), 1) for node in nodes(model.graph))
    if max([total, *counts.values()]) > MAX_NODES:
        raise Refused(f"it has more than {MAX_NODES:,} nodes")


def _check_tensors(model: ModelProto, path: Path) -> int:
    """Check that every tensor is as large as it says; the bytes of external data."""
    files: dict[Path, int] = {}
    total = 0
    for tensor in tensors(model):
        if any(size < 0 for size in tensor.dims):
            raise _damaged(tensor, f"has a negative size: {shown_shape(tensor)}")
        if tensor.data_type not in helper.get_all_tensor_dtypes():
            raise _damaged(tensor, f"has an unknown type: {tensor.data_type}")
        needed = _bytes(tensor.data_type, tensor.dims)
        if uses_external_data(tensor):
            found = check_external(tensor, needed, path)
            files[found.file] = found.available
            total += needed
        elif tensor.HasField("raw_data"):
            if (held := len(tensor.raw_data)) != needed:
                raise _damaged(tensor, f"of shape {shown_shape(tensor)} needs {needed:,} bytes, has {held:,}")
        elif needed > 16 * tensor.ByteSize() + 64:
            raise _damaged(tensor, f"of shape {shown_shape(tensor)} has only {tensor.ByteSize():,} bytes")
    if total > min(MAX_TENSORS, 4 * sum(files.values())):
        raise Refused(f"its external data come to {total / 2**30:,.1f} GB")
    return total


def _damaged(tensor: TensorProto, reason: str) -> Refused:
    return Refused(f"tensor '{tensor.name}' {reason}", DAMAGED, valid=False)


def _bytes(kind: int, sizes: Iterable[int]) -> int:
    """What a tensor takes in memory; a string counts as one byte."""
    count: int = math.prod(sizes)
    if kind in _PACKED:
        return -(-count // _PACKED[kind])
    item: int = helper.tensor_dtype_to_np_dtype(kind).itemsize if kind in _SIZED else 1
    return count * item


def _check_values(model: ModelProto, most: int) -> None:
    """Check the sizes of values between nodes, as far as ONNX's own inference knows them.

    Its option `data_prop` stays off: that allocates a number for every entry of a vector. Sizes that are computed are
    left to the limits of `runtime_memory` and of the twin.
    """
    constants = {tensor.name for tensor in model.graph.initializer} - {value.name for value in model.graph.input}
    constants.update(sparse.values.name for sparse in model.graph.sparse_initializer)
    for node in model.graph.node:
        if all(name in constants or not name for name in node.input) and not list(inner_graphs(node)):
            constants.update(node.output)
    computed = 0
    for name, type in inferred_types(_without_weights(model)).items():
        kind = type.tensor_type
        taken = _bytes(kind.elem_type, (abs(dim.dim_value) for dim in kind.shape.dim if dim.HasField("dim_value")))
        computed += taken if name in constants else 0
        if taken > MAX_VALUE or computed > most:
            raise Refused(f"'{name}' would take {max(taken, computed) / 2**30:,.1f} GB")


def _without_weights(model: ModelProto) -> ModelProto:
    """A copy for shape inference: large tensors are inputs of its graph."""
    graph = GraphProto(name=model.graph.name or "graph")
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    weights = {sparse.values.name: (sparse.values.data_type, sparse.dims) for sparse in model.graph.sparse_initializer}
    for tensor in model.graph.initializer:
        if not uses_external_data(tensor) and tensor.ByteSize() <= SMALL:
            graph.initializer.append(tensor)
        else:
            weights[tensor.name] = tensor.data_type, tensor.dims
    for value in model.graph.input:
        weights.pop(value.name, None)
    graph.input.extend(helper.make_tensor_value_info(name, *entry) for name, entry in weights.items())
    copy = ModelProto(ir_version=max(model.ir_version, 4), graph=graph)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    return copy


def inferred_types(model: ModelProto) -> dict[str, TypeProto]:
    """Types of the values in a graph, by name: its inputs, its outputs, and what it computes between them.

    ONNX gives up a whole graph over one node that ONNX Runtime may well run. Then each node is asked by itself, so that
    one that ONNX cannot read hides nothing of the others; what stands inside functions stays unknown.
    """
    try:
        graph = infer_shapes(model).graph
        return {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    except _UNKNOWN:
        pass
    opsets = {own_domain(entry.domain): entry.version for entry in model.opset_import}
    data = {tensor.name: tensor for tensor in model.graph.initializer}
    known = {name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims) for name, tensor in data.items()}
    known |= {value.name: value.type for value in model.graph.input}
    for node in model.graph.node:
        domain = own_domain(node.domain)
        if not all(name in known for name in node.input if name):
            continue
        types = {name: known[name] for name in node.input if name}
        values = {name: data[name] for name in node.input if name in data}
        try:
            schema = get_schema(node.op_type, opsets.get(domain, 1), domain)
            known.update(infer_node_outputs(schema, node, types, values, opset_imports=list(model.opset_import)))
        except _UNKNOWN:
            continue
        if node.op_type == "Constant" and not domain:
            data.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
    return known


_UNKNOWN = (SchemaError, InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError)
"""What ONNX raises where it cannot infer."""
