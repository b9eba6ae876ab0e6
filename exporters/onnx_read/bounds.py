"""What an ONNX graph would take to run, judged before anything of it is loaded or run.

A file of a few bytes can ask for terabytes: a shape in front of ConstantOfShape, a tensor that claims more numbers than
it has, functions that call each other twice at every level, one piece of external data named a thousand times.
"""

import math
from pathlib import Path

from onnx import FunctionProto, GraphProto, ModelProto, TensorProto, helper
from onnx.external_data_helper import uses_external_data

from exporters.onnx_read.external_data import check_external, shape_of
from exporters.onnx_read.parts import DAMAGED, Refused, inner_graphs, nodes, tensors
from exporters.onnx_read.sparse_tensors import dense_bytes
from exporters.onnx_read.types import inferred_types

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


def check_bounds(model: ModelProto, path: Path) -> None:
    """See that tensors have the bytes they claim, and that neither loading nor running the graph takes absurd memory.

    Args:
        model: without its external data.
        path: of its file.

    Raises:
        Refused: names the first thing that is not so.
    """
    size = path.stat().st_size
    _check_nodes(model)
    size += _check_tensors(model, path)
    most, dense = max(MAX_CONSTANTS, 16 * size), dense_bytes(model)
    if dense > most:
        raise Refused(f"its sparse tensors would take {dense / 2**30:,.1f} GB")
    _check_values(model, most)


def _check_nodes(model: ModelProto) -> None:
    """The number of nodes once functions are written out where they are called."""
    functions = {(each.domain, each.name): each for each in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(owner: GraphProto | FunctionProto, callers: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes(owner):
            key = (node.domain, node.op_type)
            if key not in functions:
                total += 1
            else:
                if key in callers:
                    raise Refused(f"function '{node.op_type}' calls itself")
                if len(callers) == MAX_CALLS:
                    raise Refused(f"more than {MAX_CALLS} functions call each other")
                if key not in counts:
                    counts[key] = count(functions[key], (*callers, key))
                total += counts[key]
            if total > MAX_NODES:
                raise Refused(f"it has more than {MAX_NODES:,} nodes")
        return total

    count(model.graph, ())
    for key, function in functions.items():
        count(function, (key,))


def _check_tensors(model: ModelProto, path: Path) -> int:
    """Bytes of external data, once every tensor is seen to be as large as it says."""
    files: dict[Path, int] = {}
    total = 0
    for tensor in tensors(model):
        needed = _bytes(tensor)
        if uses_external_data(tensor):
            file, available = check_external(tensor, needed, path)
            files[file] = available
            total += needed
        elif tensor.HasField("raw_data"):
            if (held := len(tensor.raw_data)) != needed:
                raise _damaged(tensor, f"of shape {shape_of(tensor)} needs {needed:,} bytes, has {held:,}")
        elif needed > 16 * tensor.ByteSize() + 64:
            raise _damaged(tensor, f"of shape {shape_of(tensor)} has only {tensor.ByteSize():,} bytes")
    if total > min(MAX_TENSORS, 4 * sum(files.values())):
        raise Refused(f"its external data come to {total / 2**30:,.1f} GB")
    return total


def _damaged(tensor: TensorProto, reason: str) -> Refused:
    return Refused(f"tensor '{tensor.name}' {reason}", DAMAGED, valid=False)


def _bytes(tensor: TensorProto) -> int:
    """What `tensor` takes in memory; strings count as nothing."""
    if any(size < 0 for size in tensor.dims):
        raise _damaged(tensor, f"has a negative size: {shape_of(tensor)}")
    count: int = math.prod(tensor.dims)
    if tensor.data_type in _HALF_BYTES:
        return -(-count // 2)
    if tensor.data_type in _QUARTER_BYTES:
        return -(-count // 4)
    if tensor.data_type not in helper.get_all_tensor_dtypes():
        raise _damaged(tensor, f"has an unknown type: {tensor.data_type}")
    if tensor.data_type == TensorProto.STRING:
        return 0
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


_HALF_BYTES = {TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT4E2M1}
_QUARTER_BYTES = {getattr(TensorProto, name) for name in ("UINT2", "INT2") if hasattr(TensorProto, name)}


def _check_values(model: ModelProto, most: int) -> None:
    """The sizes between nodes, as far as ONNX's own inference knows them.

    Without its `data_prop`, which allocates a number for every entry of a vector. Sizes that are computed are left to
    the limits of `runtime_memory` and of the twin.
    """
    constants = {tensor.name for tensor in model.graph.initializer} - {value.name for value in model.graph.input}
    constants.update(sparse.values.name for sparse in model.graph.sparse_initializer)
    for node in model.graph.node:
        if all(name in constants or not name for name in node.input) and not list(inner_graphs(node)):
            constants.update(node.output)
    computed = 0
    for name, type in inferred_types(_without_weights(model)).items():
        kind = type.tensor_type
        item = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize if kind.elem_type in _SIZED else 1
        taken = math.prod((abs(dim.dim_value) for dim in kind.shape.dim if dim.HasField("dim_value")), start=item)
        computed += taken if name in constants else 0
        if taken > MAX_VALUE or computed > most:
            raise Refused(f"'{name}' would take {max(taken, computed) / 2**30:,.1f} GB")


_SIZED = {kind for kind in helper.get_all_tensor_dtypes() if kind != TensorProto.STRING}


def _without_weights(model: ModelProto) -> ModelProto:
    """A copy for shape inference: large tensors are inputs of its graph."""
    graph = GraphProto(name=model.graph.name or "graph")
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    inputs = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if not uses_external_data(tensor) and tensor.ByteSize() <= SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for sparse in model.graph.sparse_initializer:
        values = sparse.values
        if values.name not in inputs:
            graph.input.append(helper.make_tensor_value_info(values.name, values.data_type, sparse.dims))
    copy = ModelProto(ir_version=max(model.ir_version, 4), graph=graph)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    return copy
