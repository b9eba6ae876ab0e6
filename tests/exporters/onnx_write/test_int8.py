"""INT8 export, judged by ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization.calibrate import TensorsData
from shared import randomise_batch_norm
from torch import nn

from dgad_tk.artifacts.record import Artifact, threat_of
from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.ascent.pgd import pgd_on
from dgad_tk.common import UserError
from dgad_tk.models import build_model
from exporters.onnx_write import exclusions, int8
from exporters.onnx_write.calibration import CALIBRATORS, calibrate
from exporters.onnx_write.float32 import to_onnx, write_onnx
from exporters.onnx_write.int8 import Int8, save_onnx_int8

Graphs = dict[int, tuple[nn.Module, bytes]]
"""By the id of the network, which is kept so that no other gets its id."""

RECORD = Artifact(
    model="resnet8",
    classes=[str(c) for c in range(10)],
    input_shape=(1, 8, 8),
    dataset="digits",
    threat={"norm": "linf", "eps": 0.15, "step_size": 0.0375, "steps": 4},
)


@pytest.fixture(scope="module")
def graphs() -> Graphs:
    return {}


@pytest.fixture(autouse=True)
def _exported_once(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's exporter takes most of the time of an INT8 export, and is judged elsewhere."""

    def save(net: nn.Module, artifact: Artifact, path: Path, opset: int) -> None:
        if id(net) not in graphs:
            graphs[id(net)] = (net, to_onnx(net, artifact, opset).SerializeToString())
        write_onnx(onnx.load_from_string(graphs[id(net)][1]), artifact, path)

    monkeypatch.setattr(int8, "save_onnx", save)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomise_batch_norm(build_model("resnet8", in_channels=1, classes=10)).eval()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).random((96, 1, 8, 8), dtype=np.float32)


def logits(path: Path, x: np.ndarray) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(str(path)).run(None, {"input": x})[0])


def test_the_file_multiplies_integers_and_leaves_logits_float(
    model: nn.Module, images: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "student.int8.onnx"
    found = save_onnx_int8(model, RECORD, path, images=images, int8=Int8(64)).findings
    proto = onnx.load(str(path))
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    makers = {output: node.op_type for node in proto.graph.node for output in node.output}
    assert len(convolutions) == 9
    assert all(makers[node.input[0]] == makers[node.input[1]] == "DequantizeLinear" for node in convolutions)
    assert makers[proto.graph.output[0].name] == "Gemm"
    scales = {tensor.name: tensor for tensor in proto.graph.initializer}
    weights = [next(n for n in proto.graph.node if node.input[1] in n.output) for node in convolutions]
    for node, dequantiser in zip(convolutions, weights, strict=True):  # a scale a channel
        channels = scales[dequantiser.input[0]].dims[0]
        assert list(scales[dequantiser.input[1]].dims) == [channels], node.name
        assert scales[dequantiser.input[0]].data_type == onnx.TensorProto.INT8

    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    actual = logits(path, images)
    assert np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()
    agreement = found["agreement"]
    held_out = images[64:]
    assert agreement["n"] == 32
    assert agreement["clean"] == pytest.approx(
        np.mean(logits(path, held_out).argmax(1) == expected[64:].argmax(1)), abs=1e-9
    )
    assert found["size_bytes"] == path.stat().st_size < 0.6 * found["fp32_size_bytes"]
    record = Artifact.from_mapping({entry.key: entry.value for entry in proto.metadata_props}, "")
    assert record is not None
    assert record.to_dict()["calibration"]["on"] == "clean"


@pytest.mark.parametrize("method", sorted(CALIBRATORS))
def test_every_calibration_method_and_images(
    method: str, model: nn.Module, images: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "student.int8.onnx"
    on = {"minmax": "both", "percentile": "adversarial", "entropy": "clean"}[method]
    save_onnx_int8(model, RECORD, path, images=images, int8=Int8(32, calibration_method=method, calibrate_on=on))
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    assert np.mean(logits(path, images).argmax(1) == expected.argmax(1)) > 0.8
    assert capsys.readouterr().out == ""  # it is the caller's


class _Endings(nn.Module):
    """A convolution, and one of the ways in which a network can make its logits of that."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.ending = ending
        self.first, self.pointwise = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 10, 1)
        self.head, self.other = nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(self.first(x).relu(), 1)
        if self.ending == "reshaped":
            return self.pointwise(pooled).flatten(1)  # type: ignore[no-any-return]
        flat = pooled.flatten(1)
        if self.ending == "added":
            return self.head(flat) + self.other(flat)  # type: ignore[no-any-return]
        return self.head(flat).relu()  # type: ignore[no-any-return]


@pytest.mark.parametrize("ending", ["reshaped", "added", "clipped"])
def test_logits_are_float_however_they_are_made(ending: str, images: np.ndarray, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, path = _Endings(ending).eval(), tmp_path / "x.onnx"
    save_onnx_int8(net, RECORD, path, images=images, int8=Int8(32))
    found = logits(path, images)
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    if ending == "clipped":  # by its quantiser alone: the ReLU is gone
        assert found.min() == expected.min() == 0
    else:
        assert len(np.unique(found)) > 256


def test_ranges_by_every_method(tmp_path: Path) -> None:
    """Of an input of which one value in a million is far from the others, and which leans to one side."""
    path = tmp_path / "x.onnx"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    write_onnx(to_onnx(net, RECORD, 20), RECORD, path)
    x = np.random.default_rng(0).uniform(-0.25, 1, (16384, 1, 8, 8)).astype(np.float32)
    x[7, 0, 0, 0] = 9
    ends = {}
    for name in CALIBRATORS:
        data = calibrate(path, x, name)["input"]
        ends[name] = (data.lowest.item(), data.highest.item())
    assert ends["minmax"] == pytest.approx((-0.25, 9), abs=1e-4)
    assert ends["percentile"] == pytest.approx((-0.25, 1), abs=0.02)
    assert ends["entropy"][0] == pytest.approx(-0.25, abs=1e-4)
    assert ends["entropy"][1] < 8


def test_a_network_that_overflows_has_no_ranges(images: np.ndarray, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    nn.init.constant_(net[1].bias, float("inf"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="INT8 has no range for '.*': on training images it is not finite"):
        save_onnx_int8(net, RECORD, tmp_path / "x.onnx", images=images, int8=Int8(32))


class _Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10]


def test_nothing_to_quantise(model: nn.Module, images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="INT8 has nothing to quantise"):
        save_onnx_int8(_Nothing(), RECORD, tmp_path / "x.onnx", images=images, int8=Int8(32))
    with pytest.raises(UserError, match="--exclude leaves no node to quantise"):
        save_onnx_int8(model, RECORD, tmp_path / "x.onnx", images=images, int8=Int8(32, exclude=["*"]))


def test_adversarial_calibration_sees_adversarial_images(
    model: nn.Module, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def spy(prepared: Path, calibration: np.ndarray, method: str) -> TensorsData:
        seen.append(calibration)
        return calibrate(prepared, calibration, method)

    monkeypatch.setattr(int8, "calibrate", spy)
    for on in ("clean", "adversarial", "both"):
        save_onnx_int8(model, RECORD, tmp_path / "x.onnx", images=images, int8=Int8(32, calibrate_on=on))
    clean, adversarial, both = seen
    np.testing.assert_array_equal(clean, images[:32])
    assert np.abs(adversarial - clean).max() == pytest.approx(0.15, abs=1e-6)
    np.testing.assert_array_equal(both[:16], images[:16])
    assert np.abs(both[16:] - images[16:32]).max() == pytest.approx(0.15, abs=1e-6)


def test_excluded_nodes_stay_float(model: nn.Module, images: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "student.int8.onnx"
    found = save_onnx_int8(model, RECORD, path, images=images, int8=Int8(32, exclude=["node_linear*"])).findings
    assert len(found["excluded"]) == 1
    (gemm,) = (node for node in onnx.load(str(path)).graph.node if node.op_type == "Gemm")
    floats = {tensor.name for tensor in onnx.load(str(path)).graph.initializer if tensor.data_type == 1}
    assert gemm.input[1] in floats


def test_search_finds_the_layer_that_was_broken(images: np.ndarray, tmp_path: Path) -> None:
    """One huge weight, on a feature that is always zero, takes all resolution from the others of its layer."""
    torch.manual_seed(0)
    hidden, last = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), hidden, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last
    ).eval()
    with torch.no_grad():
        hidden.weight[0], hidden.bias[0] = 0, 0  # type: ignore[index]
        last.weight *= 20
        last.weight[:, 0] = 20000
    path = tmp_path / "x.onnx"
    broken = save_onnx_int8(net, RECORD, path, images=images, int8=Int8(32)).findings
    assert broken["agreement"]["adversarial"] < 0.7
    mended = save_onnx_int8(net, RECORD, path, images=images, int8=Int8(32, search_exclusions=True)).findings
    assert mended["excluded"][0].startswith("node_linear")
    assert len(mended["search"]) == 1 + len(mended["excluded"])
    assert mended["search"][0]["excluded"] == []
    assert mended["search"][-1]["excluded"] == mended["excluded"]
    assert mended["agreement"]["adversarial"] == mended["search"][-1]["adversarial_agreement"] > 0.9


def test_search_is_content_with_the_best() -> None:
    """Where nothing restores agreement, the fewest nodes with the best one are left out."""
    x = np.zeros((4, 2), dtype=np.float32)
    answers = {0: [0, 0, 0, 0], 1: [1, 1, 1, 0], 2: [1, 1, 1, 0], 3: [1, 1, 0, 0]}  # right: 1 everywhere

    def fake(model: object, images: np.ndarray) -> np.ndarray:
        assert isinstance(model, list | tuple)
        return np.eye(2, dtype=np.float32)[answers[min(3, len(model))]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exclusions, "logits_of", fake)
        tried = exclusions.find_exclusions(list, ["a", "b", "c"], [], np.eye(2, dtype=np.float32)[[1, 1, 1, 1]], x)  # type: ignore[arg-type]
    assert [each.agreement for each in tried] == [0.0, 0.75, 0.5, 0.75]
    assert len(tried[-1].nodes) == 1


@pytest.mark.parametrize(("count", "samples", "judged"), [(96, 48, 48), (20, 16, 4), (16, 16, 16)])
def test_few_images_are_shared_by_calibration_and_judgement(
    model: nn.Module, images: np.ndarray, tmp_path: Path, count: int, samples: int, judged: int
) -> None:
    """Where nobody says how many: half of them each, 16 at least to calibrate on."""
    found = save_onnx_int8(model, RECORD, tmp_path / "int8.onnx", images=images[:count]).findings
    assert found["calibration"].startswith(f"{samples} ")
    assert found["agreement"]["n"] == judged


def test_bad_input(model: nn.Module, images: np.ndarray, tmp_path: Path) -> None:
    options: dict[str, Any]
    for options, message in [
        ({"calibration_samples": 97}, "--calibration-samples must be 16 to 96, got 97"),
        ({"calibration_samples": 3}, "--calibration-samples must be at least 16, got 3"),
        ({"calibration_method": "minmx"}, "unknown calibration method 'minmx'"),
        ({"calibrate_on": "dirty"}, "unknown --calibrate-on 'dirty'"),
        ({"exclude": ["nope"], "calibration_samples": 32}, "--exclude 'nope' names no node"),
    ]:
        with pytest.raises(UserError, match=message):
            save_onnx_int8(model, RECORD, tmp_path / "x.onnx", images=images, int8=Int8(**options))
    assert not (tmp_path / "x.onnx").exists()


def test_pgd_hurts_and_stays_in_the_ball(model: nn.Module, images: np.ndarray) -> None:
    found = pgd_on(model, images, threat_of(RECORD))
    assert np.abs(found - images).max() <= 0.15 + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    with torch.no_grad():
        answers = model(torch.from_numpy(images))
        attacked = model(torch.from_numpy(found))
    predicted = answers.argmax(1)
    losses = [cross_entropy(logits, predicted) for logits in (answers, attacked)]
    assert (losses[1] > losses[0]).float().mean() > 0.9
