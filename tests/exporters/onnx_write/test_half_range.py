"""Half precision: the largest activation in float32 decides, since a CPU computes float16 in float32."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from shared import Victim, artifact
from small_graphs import FLAT, graph, images, weights

from cli import app
from cli.printing.export_table import print_export
from dgad_tk.artifacts.weights import save_weights
from exporters.export import ParityError, Source, export
from exporters.formats import EXPORTERS
from exporters.onnx_write.half_range import LARGEST, activation_peaks, judge_range


def scaled(factor: float) -> list[Any]:
    """A value in the middle times `factor`, and back: the logits are those of the linear classifier."""
    up = helper.make_node("Mul", ["x", "up"], ["large"], name="up")
    down = helper.make_node("Mul", ["large", "down"], ["small"], name="down")
    constants = {"w": weights(), "up": np.float32(factor), "down": np.float32(1 / factor)}
    return activation_peaks(
        graph([up, down, *FLATTENED], constants), {"clean": images(), "white": np.ones_like(images())}
    )


FLATTENED = [helper.make_node("Flatten", ["small"], ["f"]), FLAT[1]]


def test_the_peaks_are_the_largest_values_of_each_operator() -> None:
    peaks = scaled(1000.0)
    assert [peak.place.split(",")[0] for peak in peaks] == ["Mul", "Mul", "Flatten", "Gemm"]
    assert [peak.value for peak in peaks[:3]] == [1000.0, 1.0, 1.0]
    assert peaks[0].images == "white"
    x = np.concatenate([images(), np.ones_like(images())]).reshape(10, -1)
    assert peaks[3].value == pytest.approx(np.abs(x @ weights().T).max(), rel=1e-5)


@pytest.mark.parametrize(
    ("factor", "failures", "warnings"),
    [(16_000.0, 0, 0), (17_000.0, 0, 1), (65_504.0, 0, 1), (65_600.0, 1, 0), (1e30, 1, 0)],
)
def test_what_fails_and_what_is_warned_of(factor: float, failures: int, warnings: int) -> None:
    found = judge_range(scaled(factor))
    assert tuple(map(len, found)) == (failures, warnings)
    for text in (*found[0], *found[1]):
        assert "node up" in text
        assert f"float16 ends at {LARGEST:,.0f}" in text


def test_what_overflows_in_float32_is_beyond_float16() -> None:
    constants = {"w": weights(), "up": np.float32(3e38), "down": np.float32(0)}
    nodes = [helper.make_node("Mul", ["x", "up"], ["l"], name="up"), helper.make_node("Mul", ["l", "up"], ["m"])]
    nodes += [helper.make_node("Mul", ["m", "down"], ["small"]), *FLATTENED]
    with np.errstate(all="ignore"):
        peaks = activation_peaks(graph(nodes, constants), {"clean": images()})
    assert peaks[2].value == np.inf  # infinity times zero is no number
    assert judge_range(peaks)[0]


@pytest.fixture
def weights_file(victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_weights(Path("w.safetensors"), victim[0], artifact())
    return Path("w.safetensors")


def test_an_export_says_what_was_not_judged(
    weights_file: Path, victim: Victim, capsys: pytest.CaptureFixture[str]
) -> None:
    written = export(Source(weights_file, victim[1]), "onnx-fp16", Path("s.onnx"))
    assert written.parity.passed
    assert "this CPU does in float32" in written.parity.not_judged
    assert written.report.warnings == ()
    assert " images" in written.report.findings["largest_activation"]
    assert "this CPU does in float32" in written.parity.as_dict()["not_judged"]
    print_export(written)
    assert "not judged: arithmetic in float16" in capsys.readouterr().out
    assert [name for name, row in EXPORTERS.items() if row.not_judged] == ["onnx-fp16"]


@pytest.mark.parametrize(("factor", "code"), [(2e4, 0), (1e5, 1)])
def test_an_export_fails_of_activations_beyond_float16(
    factor: float,
    code: int,
    weights_file: Path,
    victim: Victim,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its logits are right on this CPU, so that parity alone would let it pass."""
    scaled_up = scaled(factor)
    monkeypatch.setattr("exporters.onnx_write.float16.activation_peaks", lambda proto, sets: scaled_up)
    assert app.run(["export", "w.safetensors", "--format", "onnx-fp16", "--output", "s.onnx"]) == code
    said = capsys.readouterr().err
    assert "node up" in said
    assert ("warning: " in said) is (code == 0)
    assert Path("s.onnx").exists() is (code == 0)
    assert Path("s.onnx.failed").exists() is (code == 1)


def test_a_network_whose_values_outgrow_float16_is_not_exported(weights_file: Path, victim: Victim) -> None:
    """Its first normalisation gives values a million times as large; float32 has room for them."""
    net = copy.deepcopy(victim[0])
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    with torch.no_grad():
        norms[0].weight *= 1e6
        norms[0].bias *= 1e6
    save_weights(weights_file, net, artifact())
    with pytest.raises(
        ParityError, match=r"float16 ends at 65,504, and in float32 there is [\d,]+ at net\.\S+ \(.*images"
    ):
        export(Source(weights_file, victim[1]), "onnx-fp16", Path("s.onnx"))
    assert Path("s.onnx.failed").exists()
