"""Sparse weights: made dense as ONNX Runtime makes them, within limits."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import SparseTensorProto, helper, numpy_helper
from small_graphs import FLAT, graph, images, runs, saved

from dgad_tk.common import UserError
from exporters.bench.describe import describe
from exporters.formats import load
from exporters.onnx_read.read import read_onnx


def sparse(values: Any, indices: Any, shape: tuple[int, ...] = (2, 192), kind: Any = np.float32) -> SparseTensorProto:
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.asarray(values, kind), "w"),
        numpy_helper.from_array(np.asarray(indices), "at"),
        shape,
    )


def model(tensor: SparseTensorProto, nodes: list[Any] = FLAT) -> onnx.ModelProto:
    proto = graph(nodes)
    proto.graph.sparse_initializer.append(tensor)
    return proto


FORMS = {
    "linear indices": sparse([1, 2, -3], np.int64([3, 5, 200])),
    "pairs of indices": sparse([1, 2, -3], np.int64([[0, 3], [0, 5], [1, 8]])),
    "small indices": sparse([1, 2], np.int8([3, 5])),
    "unsorted": sparse([1, 2, -3], np.int64([200, 3, 5])),
    "one index twice": sparse([1, 2, 4], np.int64([3, 3, 200])),
    "nothing": sparse([], np.int64([])),
}


@pytest.mark.parametrize("form", FORMS)
def test_sparse_weights_are_those_that_onnx_runtime_reads(form: str, tmp_path: Path) -> None:
    path, x = saved(model(FORMS[form]), tmp_path / "sparse.onnx"), images()
    predictor = load(path)
    assert predictor.module is not None
    np.testing.assert_array_equal(predictor.predict(x), runs(path, x))
    np.testing.assert_allclose(predictor.module(torch.from_numpy(x)).numpy(), runs(path, x), rtol=1e-5, atol=1e-6)
    assert describe(path).complexity.parameters == 384


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8])
def test_sparse_weights_of_other_types(kind: Any, tmp_path: Path) -> None:
    nodes = [FLAT[0], helper.make_node("Cast", ["w"], ["v"], to=1)]
    nodes.append(helper.make_node("Gemm", ["f", "v"], ["y"], transB=1))
    path, x = saved(model(sparse([1, 2], np.int64([3, 200]), kind=kind), nodes), tmp_path / "sparse.onnx"), images()
    predictor = load(path)
    assert predictor.module is not None
    np.testing.assert_allclose(predictor.module(torch.from_numpy(x)).numpy(), runs(path, x), rtol=1e-3)


def test_a_sparse_constant(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["w"])
    constant.attribute.append(helper.make_attribute("sparse_value", sparse([1, 2], np.int64([3, 200]))))
    path, x = saved(graph([constant, *FLAT]), tmp_path / "sparse.onnx"), images()
    predictor = load(path)
    assert predictor.module is not None
    np.testing.assert_allclose(predictor.module(torch.from_numpy(x)).numpy(), runs(path, x), rtol=1e-5)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (sparse([1, 2], np.int64([3, 384])), "an index outside of its shape"),
        (sparse([1, 2], np.int64([-1, 3])), "an index outside of its shape"),
        (sparse([1, 2], np.int64([[0, 3], [2, 0]])), "an index outside of its shape"),
        (sparse([1, 2], np.int64([3])), r"\(2,\) values at \(1,\) indices"),
        (sparse([1, 2], np.int64([[3, 1, 1], [1, 1, 1]])), "indices"),
        (sparse([1, 2], np.float32([3, 5])), "indices"),
        (sparse([[1, 2]], np.int64([3, 5])), "indices"),
    ],
)
def test_sparse_tensors_that_contradict_themselves(tensor: SparseTensorProto, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"the sparse tensor 'w' has {message}|{message}") as caught:
        load(saved(model(tensor), tmp_path / "sparse.onnx"))
    assert "sparse" in caught.value.message
    assert "cut short" not in str(caught.value)


@pytest.mark.parametrize("shape", [(10**6, 10**6), (2**62, 2), (30_000, 30_000)])
def test_a_sparse_tensor_of_terabytes_takes_no_memory(shape: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sparse tensors would take") as caught:
        load(saved(model(sparse([1], np.int64([3]), shape)), tmp_path / "sparse.onnx"))
    assert "limits" in caught.value.hint


def test_many_sparse_tensors_are_counted_together(tmp_path: Path) -> None:
    proto = model(sparse([1], np.int64([3]), (1_200, 1_200)))
    assert len(read_onnx(saved(proto, tmp_path / "one.onnx")).graph.initializer[0].raw_data) == 4 * 1_200**2
    for _ in range(100):
        proto.graph.sparse_initializer.append(proto.graph.sparse_initializer[0])
    with pytest.raises(UserError, match="sparse tensors would take 0.5 GB"):
        read_onnx(saved(proto, tmp_path / "many.onnx"))


def test_sparse_tensors_where_no_operator_has_them_are_named(tmp_path: Path) -> None:
    strange = helper.make_node("Flatten", ["x"], ["f"])
    strange.attribute.append(helper.make_attribute("weights", sparse([1], np.int64([3]))))
    with pytest.raises(UserError, match="'Flatten' has sparse tensors as an attribute") as caught:
        load(saved(graph([strange, FLAT[1]]), tmp_path / "strange.onnx"))
    assert "not a valid" not in caught.value.message
