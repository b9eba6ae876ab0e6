"""Timings: in the runtime and on the provider asked for, each file in a process of its own, no twin built."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from shared import ROOT

from dgad_tk.common import UserError
from exporters.bench import worker
from exporters.bench.describe import describe
from exporters.bench.latency import MIN_RUNS, _Worker, measure
from exporters.bench.worker import Job, timed
from exporters.onnx_open import open


def saved(path: Path, nodes: list[NodeProto], shape: list[Any], **weights: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["N", "K"])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def linear(path: Path, batch: Any = "N", width: int = 16, layers: int = 1) -> Path:
    """Flat images through `layers` square matrices."""
    names = ["x", *(f"h{number}" for number in range(layers))]
    nodes = [helper.make_node("MatMul", [names[at], "w"], [names[at + 1]]) for at in range(layers)]
    return saved(path, nodes, [batch, width], w=np.eye(width))


def test_files_of_any_batch_size_side_by_side(tmp_path: Path) -> None:
    quick = describe(linear(tmp_path / "quick.onnx", width=128))
    slow = describe(linear(tmp_path / "slow.onnx", width=128, layers=200))
    fixed = describe(linear(tmp_path / "fixed.onnx", batch=3, width=128))
    assert (quick.fixed_batch, fixed.fixed_batch) == (None, 3)
    assert slow.complexity.multiply_adds == 200 * 128 * 128
    assert fixed.complexity.multiply_adds == quick.complexity.multiply_adds == 128 * 128
    assert quick.bytes == quick.path.stat().st_size
    shares: list[float] = []
    found = measure([quick, slow, fixed], batches=[64, 1], threads=[1], seconds=0.1, on_progress=shares.append)
    assert [[each.batch for each in measurements] for measurements in found] == [[1, 64], [1, 64], [3]]
    for each in (each for measurements in found for each in measurements):
        assert each.runtime.endswith("CPUExecutionProvider")
        assert each.threads == 1
        assert each.runs >= MIN_RUNS
        assert 0 < each.p50_ms <= each.p95_ms
        assert each.images_per_second == pytest.approx(each.batch * 1000 / each.p50_ms)
    assert [each.relative for each in found[0]] == [1.0, 1.0]
    assert [each.relative for each in found[1]] == [
        one.p50_ms / two.p50_ms for one, two in zip(*found[:2], strict=True)
    ]
    assert found[2][0].relative is None
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process' high-water mark")
def test_peak_memory_holds_the_weights_and_the_largest_batch(tmp_path: Path) -> None:
    """37.7 MB of weights; then a tensor of 1 MB an image. The runtime may take it a few times over, and never less."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    heavy = describe(saved(tmp_path / "heavy.onnx", nodes, ["N", 3072], w=np.ones((3072, 3072), np.float32)))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("ReduceMax", ["a"], ["y"], axes=[2, 3], keepdims=0),
    ]
    wide = describe(saved(tmp_path / "wide.onnx", nodes, ["N", 1, 64, 64], w=np.ones((64, 1, 1, 1))))
    ((of_heavy,),) = measure([heavy], batches=[1], threads=[1], seconds=0.01)
    (of_wide,) = measure([wide], batches=[1, 32], threads=[1], seconds=0.01)
    assert of_heavy.peak_memory_bytes is not None
    assert 37.7e6 < of_heavy.peak_memory_bytes < 4 * 37.7e6
    one, many = (each.peak_memory_bytes for each in of_wide)
    assert one is not None
    assert many is not None
    assert 1e6 < one < 33e6
    assert 33e6 < many < 8 * 33e6


def test_no_twin_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a twin was built")

    monkeypatch.setattr(open, "differentiable", refuse)
    subject = describe(linear(tmp_path / "net.onnx"))
    call, runtime = worker.open_onnx(Job(str(subject.path), (16,), "float32"))
    (logits,) = call(np.ones((2, 16), np.float32))  # type: ignore[misc]
    assert np.array_equal(logits, np.ones((2, 16)))
    assert runtime.endswith("CPUExecutionProvider")


def test_an_onnx_file_is_timed_without_torch_in_the_process(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from exporters.bench.worker import Job, answers\n"
        "job = Job(sys.argv[1], (16,), 'float32')\n"
        "runtime, memory, seconds = answers(job, iter([(2, None), (2, 0.01)]))\n"
        "assert not {'torch', 'onnx', 'exporters.formats'} & set(sys.modules)\n"
        "assert runtime.startswith('onnxruntime')\n"
        "assert memory is None or memory > 0\n"
        "assert all(each > 0 for each in seconds)"
    )
    command = [sys.executable, "-P", "-c", code, str(linear(tmp_path / "net.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_a_cold_call_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def taking(*seconds: float) -> Callable[[object], None]:
        """Calls that take so long by the clock, all after the last as long as it."""
        left = list(seconds)

        def call(_: object) -> None:
            clock[0] += left.pop(0) if len(left) > 1 else left[0]

        return call

    # Binary fractions, so that the clock's sums are exact.
    assert timed(taking(0.5, 0.125), np.zeros(1), 1.0) == [0.125] * 4
    assert timed(taking(2.0, 0.125), np.zeros(1), 1.0) == [2.0]  # it fills the turn: kept


def test_torch_on_another_device_than_asked_for_is_an_error(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # so that a machine with a GPU has none either
    with pytest.raises(UserError, match="would run on torch .* cpu, not on cuda") as caught:
        worker.open_torch(Job(str(weights), (1, 8, 8), "float32", provider="cuda"))
    assert "--provider cpu" in caught.value.hint
    call, runtime = worker.open_torch(Job(str(weights), (1, 8, 8), "float32"))
    assert runtime.endswith("cpu")
    assert np.shape(call(np.zeros((2, 1, 8, 8), np.float32))) == (2, 10)


def test_a_batch_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    """The shape says any batch, a Reshape inside says two."""
    to = helper.make_node("Constant", [], ["to"], value=numpy_helper.from_array(np.array([2, 8]), "to"))
    nodes = [to, helper.make_node("Reshape", ["x", "to"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    path = saved(tmp_path / "two.onnx", nodes, ["N", 8], w=np.eye(8))
    with pytest.raises(UserError, match=r"two.onnx' does not run on images of shape \(1, 1, 8\)"):
        describe(path)
    call, _ = worker.open_onnx(Job(str(path), (8,), "float32"))
    with pytest.raises(UserError, match="does not run at batch 3"):
        worker.warm_up(call, np.zeros((3, 8), np.float32), str(path))


def test_a_process_that_is_killed_is_an_error(tmp_path: Path) -> None:
    with closing(_Worker(describe(linear(tmp_path / "net.onnx")), "cpu", 1)) as worker:
        assert "onnxruntime" in worker.answer()
        worker.process.kill()
        worker.process.join()
        with pytest.raises(UserError, match="ended by signal 9") as caught:
            worker.ask(1)
    assert "memory" in caught.value.hint


def test_what_is_not_one_batch_of_images(tmp_path: Path) -> None:
    node = helper.make_node("Flatten", ["x"], ["y"])
    with pytest.raises(UserError, match="leaves its input's shape open"):
        describe(saved(tmp_path / "open.onnx", [node], ["N", 3, "H", "W"]))
    assert describe(tmp_path / "open.onnx", (3, 8, 9)).sample == (3, 8, 9)
    assert describe(saved(tmp_path / "nhwc.onnx", [node], ["N", "H", "W", 3]), (3, 8, 9)).sample == (8, 9, 3)
    with pytest.raises(UserError, match=r"takes images of \(3, any, any\) .C, H, W., not of \(1, 8, 9\)"):
        describe(tmp_path / "open.onnx", (1, 8, 9))
    with pytest.raises(UserError, match=r"leaves its input's shape open: \(3, any, 8\)"):
        describe(saved(tmp_path / "empty.onnx", [node], ["N", 3, 0, 8]))
    with pytest.raises(UserError, match="not an image classifier"):
        describe(saved(tmp_path / "flat.onnx", [node], ["N"]))


def test_external_data_count_as_size(tmp_path: Path) -> None:
    path = linear(tmp_path / "net.onnx", width=64)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.bin", size_threshold=0)
    assert describe(path).bytes == path.stat().st_size + 64 * 64 * 4
