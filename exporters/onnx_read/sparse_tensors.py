"""Sparse weights and constants, made dense, as ONNX Runtime does when it loads a model."""

import math

import numpy as np
from onnx import AttributeProto, ModelProto, SparseTensorProto, TensorProto, numpy_helper

from exporters.onnx_read.parts import DAMAGED, Refused, attributes, graphs


def make_dense(model: ModelProto) -> None:
    """Replace every sparse tensor of `model` by a dense one, in place.

    Args:
        model: with its tensors inside. `check_bounds` has seen that the dense ones fit into memory.

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
