"""What an ONNX graph would take to run, judged before anything of it is loaded or run.

A file of a few bytes can ask for terabytes: a shape in front of ConstantOfShape, a tensor that claims more numbers than
it has, functions that call each other twice at every level, one piece of external data named a thousand times.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

MAX_NODES = 100_000
"""With functions written out. Large vision models have 5,000."""
MAX_CALLS = 50
"""Functions that call each other, one within the other."""
MAX_TENSORS = 16 * 2**30
"""Bytes of external data."""
MAX_CONSTANTS = 512 * 2**20
"""Bytes of all that is computed from constants alone, unless the file is a sixteenth of that or more."""
MAX_VALUE = 2**32
"""Bytes of one value between nodes, at the batch size that the graph names, else at 1."""
SMALL = 4096
"""Bytes of a constant that may be a shape; the numbers in a larger one do not matter to shapes."""


class Absurd(Exception):
    """A graph asks for what no classifier needs; the text says what."""


def check_bounds(model: ModelProto, size: int, folder: Path) -> None:
    """See that tensors have the bytes they claim, and that neither loading nor running the graph takes absurd memory.

    Args:
        model: without its external data.
        size: bytes of the file.
        folder: where it is; external data lies below.

    Raises:
        Absurd: names the first thing that is not so.
    """
    _check_nodes(model)
    size += _check_tensors(_tensors(model), folder)
    _check_values(model, size)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and those inside its nodes."""
    yield graph
    yield from _inner(graph.node)


def _inner(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in _WITH_GRAPHS else ():
                yield from _graphs(inner)


_WITH_GRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def _nodes(owner: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """Every node, those of subgraphs included."""
    yield from owner.node
    for graph in _inner(owner.node):
        yield from graph.node


def _check_nodes(model: ModelProto) -> None:
    """The number of nodes once functions are written out where they are called."""
    functions = {(each.domain, each.name): each for each in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(owner: GraphProto | FunctionProto, callers: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in _nodes(owner):
            key = (node.domain, node.op_type)
            if key not in functions:
                total += 1
            else:
                if key in callers:
                    raise Absurd(f"function '{node.op_type}' calls itself")
                if len(callers) == MAX_CALLS:
                    raise Absurd(f"more than {MAX_CALLS} functions call each other")
                if key not in counts:
                    counts[key] = count(functions[key], (*callers, key))
                total += counts[key]
            if total > MAX_NODES:
                raise Absurd(f"it has more than {MAX_NODES:,} nodes")
        return total

    count(model.graph, ())
    for key, function in functions.items():
        count(function, (key,))


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    for graph in _graphs(model.graph):
        if graph.sparse_initializer:
            raise Absurd("it has sparse tensors, which are not read")
        yield from graph.initializer
    for owner in (model.graph, *model.functions):
        for node in _nodes(owner):
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors
                if attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
                    raise Absurd("it has sparse tensors, which are not read")


def _check_tensors(tensors: Iterable[TensorProto], folder: Path) -> int:
    """Bytes of external data, once every tensor is seen to be as large as it says."""
    files: dict[Path, int] = {}
    total = 0
    for tensor in tensors:
        needed = _bytes(tensor)
        if uses_external_data(tensor):
            file = _external_file(tensor, folder)
            files[file] = file.stat().st_size
            _check_external(tensor, needed, files[file])
            total += needed
        elif tensor.HasField("raw_data"):
            if (held := len(tensor.raw_data)) != needed:
                raise Absurd(f"tensor '{tensor.name}' of shape {_shape(tensor)} needs {needed:,} bytes, has {held:,}")
        elif needed > 16 * tensor.ByteSize() + 64:
            raise Absurd(f"tensor '{tensor.name}' of shape {_shape(tensor)} has only {tensor.ByteSize():,} bytes")
    if total > min(MAX_TENSORS, 4 * sum(files.values())):
        raise Absurd(f"its external data come to {total / 2**30:,.1f} GB")
    return total


def _bytes(tensor: TensorProto) -> int:
    """What `tensor` takes in memory; strings count as nothing."""
    if any(size < 0 for size in tensor.dims):
        raise Absurd(f"tensor '{tensor.name}' has a negative size: {_shape(tensor)}")
    count: int = math.prod(tensor.dims)
    if tensor.data_type in _HALF_BYTES:
        return -(-count // 2)
    if tensor.data_type in _QUARTER_BYTES:
        return -(-count // 4)
    if tensor.data_type not in helper.get_all_tensor_dtypes():
        raise Absurd(f"tensor '{tensor.name}' has an unknown type: {tensor.data_type}")
    if tensor.data_type == TensorProto.STRING:
        return 0
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _shape(tensor: TensorProto) -> str:
    return str(list(tensor.dims[:8]))


_HALF_BYTES = {TensorProto.UINT4, TensorProto.INT4, TensorProto.FLOAT4E2M1}
_QUARTER_BYTES = {getattr(TensorProto, name) for name in ("UINT2", "INT2") if hasattr(TensorProto, name)}


def _external_file(tensor: TensorProto, folder: Path) -> Path:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    try:
        file = (folder / location).resolve()
        inside = location and not Path(location).is_absolute() and file.is_relative_to(folder.resolve())
        if not inside:
            raise Absurd(f"tensor '{tensor.name}' has its data outside the model's folder: '{location[:100]}'")
        if not file.is_file():
            raise Absurd(f"tensor '{tensor.name}' has its data in a file that is missing: '{location[:100]}'")
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a zero byte, a loop of links
        raise Absurd(f"tensor '{tensor.name}' names no file for its data: {error}") from None
    return file


def _check_external(tensor: TensorProto, needed: int, available: int) -> None:
    try:
        info = ExternalDataInfo(tensor)
    except ValueError as error:
        raise Absurd(f"tensor '{tensor.name}': {error}") from None
    start = info.offset or 0
    length = available - start if info.length is None else info.length
    if start + length > available or length < 0:
        raise Absurd(f"tensor '{tensor.name}' has its data beyond the end of '{info.location[:100]}'")
    if length != needed:
        raise Absurd(f"tensor '{tensor.name}' of shape {_shape(tensor)} needs {needed:,} bytes, is given {length:,}")


def _check_values(model: ModelProto, size: int) -> None:
    """The sizes between nodes, as far as ONNX's own inference knows them.

    Without its `data_prop`, which allocates a number for every entry of a vector. Sizes that are computed are left to
    the limits of `runtime_memory` and of the twin.
    """
    inferred = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
    constants = {tensor.name for tensor in model.graph.initializer} - {value.name for value in model.graph.input}
    for node in model.graph.node:
        if all(name in constants or not name for name in node.input) and not list(_inner([node])):
            constants.update(node.output)
    computed = 0
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        item = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize if kind.elem_type in _SIZED else 1
        taken = math.prod((dim.dim_value for dim in kind.shape.dim if dim.HasField("dim_value")), start=item)
        computed += taken if value.name in constants else 0
        if taken > MAX_VALUE or computed > max(MAX_CONSTANTS, 16 * size):
            raise Absurd(f"'{value.name}' would take {max(taken, computed) / 2**30:,.1f} GB")


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
    copy = ModelProto(ir_version=max(model.ir_version, 4), graph=graph)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    return copy
