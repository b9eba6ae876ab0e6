"""Sparse weights and constants, made dense, as ONNX Runtime does when it loads a model."""

import math

import numpy as np
from onnx import AttributeProto, ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from exporters.onnx_read.parts import DAMAGED, Refused, attributes, graphs, sparse_tensors


def dense_bytes(model: ModelProto) -> int:
    """What the sparse tensors of a model take once they are dense.

    Raises:
        Refused: one of them has a type or a shape that no dense tensor has.
    """
    return sum(_dense_bytes(each) for each in sparse_tensors(model))


def make_dense(model: ModelProto) -> None:
    """Replace every sparse tensor of `model` by a dense one, in place.

    Args:
        model: with its tensors inside, and with a `dense_bytes` that the machine has room for.

    Raises:
        Refused: values and indices do not fit each other, or an index lies outside the tensor.
    """
    for graph in graphs(model.graph):
        graph.initializer.extend(_dense(each) for each in graph.sparse_initializer)
        del graph.sparse_initializer[:]
    for _, attribute in attributes(model):
        if attribute.type == AttributeProto.SPARSE_TENSOR:  # of a Constant: `sparse_tensors` lets no others pass
            dense = _dense(attribute.sparse_tensor)
            attribute.ClearField("sparse_tensor")
            attribute.name, attribute.type = "value", AttributeProto.TENSOR
            attribute.t.CopyFrom(dense)


def _dense_bytes(sparse: SparseTensorProto) -> int:
    kind = sparse.values.data_type
    if (
        kind not in helper.get_all_tensor_dtypes()
        or kind == TensorProto.STRING
        or any(size < 0 for size in sparse.dims)
    ):
        raise Refused(f"the sparse tensor '{sparse.values.name}' has a shape or type that none can have", valid=False)
    count: int = math.prod(sparse.dims)
    return count * int(helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _dense(sparse: SparseTensorProto) -> TensorProto:
    """Where two values have the same index, the last one counts, as for ONNX Runtime."""
    name, shape = sparse.values.name, tuple(sparse.dims)
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    except (ValueError, TypeError):
        raise _misfit(name, "has other numbers than its shape asks for") from None
    count = len(values) if values.ndim == 1 else -1
    if indices.dtype.kind != "i" or indices.shape not in ((count,), (count, len(shape) or 1)):
        raise _misfit(name, f"has {values.shape} values at {indices.shape} indices")
    dense = np.zeros(math.prod(shape), dtype=values.dtype)
    try:
        flat = indices.ndim == 1
        places = np.ravel_multi_index((indices,) if flat else tuple(indices.T), dense.shape if flat else shape or (1,))
    except ValueError:
        raise _misfit(name, f"has an index outside of its shape {list(shape[:8])}") from None
    dense[places] = values
    return numpy_helper.from_array(dense.reshape(shape), name)


def _misfit(name: str, reason: str) -> Refused:
    return Refused(f"the sparse tensor '{name}' {reason}", DAMAGED, valid=False)
