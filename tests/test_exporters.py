"""Exports: verified against their source, self-describing, never half-written; odd files are refused clearly."""

import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from architectures import SMALLEST
from conftest import artifact, randomise_batch_norm
from onnx import TensorProto, helper

import exporters
from dgad_tk.artifact import KEY, Artifact
from dgad_tk.checkpoint import load_model, save_weights
from dgad_tk.common import UserError
from dgad_tk.config import ThreatModel
from dgad_tk.models import build_model
from exporters import EXPORTERS, ParityError, export, load
from exporters.verify import compare_logits, verify

EXPORTED: dict[tuple[str, str], Path] = {}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every model in every format, each made once."""

    def make(name: str, format: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.getbasetemp()
        source, target = folder / f"{name}.safetensors", folder / f"{name}{EXPORTERS[format].suffix}"
        if not target.exists():
            torch.manual_seed(3)
            mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
            model = randomise_batch_norm(build_model(name, in_channels=3, classes=10, mean=mean, std=std))
            record = artifact(name, (3, 16, 16), normalize={"mean": mean, "std": std})
            save_weights(source, model, record)
            export(source, format, target)
        return source, target

    return make


@pytest.mark.parametrize("name", SMALLEST)
@pytest.mark.parametrize("format", EXPORTERS)
def test_every_model_in_every_format(exported: Any, name: str, format: str) -> None:
    source, target = exported(name, format)
    model, _ = load_model(source)
    predictor = load(target)
    assert (predictor.input_shape, predictor.classes, predictor.format) == ((3, 16, 16), 10, format)
    assert predictor.artifact is not None
    assert predictor.artifact.source_sha256
    assert predictor.artifact.model == name
    for batch in (1, 2, 5):
        x = np.random.default_rng(batch).random((batch, 3, 16, 16), dtype=np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(x)).numpy()
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.abs(predictor.predict(x) - expected).max() <= 1e-5 * scale
        assert predictor.module is not None
        with torch.no_grad():
            assert np.abs(predictor.module(torch.from_numpy(x)).numpy() - expected).max() <= 1e-5 * scale


@pytest.mark.parametrize("name", SMALLEST)
def test_gradients_through_the_onnx_file(exported: Any, name: str) -> None:
    """Against the source module in double; in float32 a rounding can flip a ReLU, so median image by image there."""
    source, target = exported(name, "onnx")
    model, predictor = load_model(source)[0], load(target)
    assert predictor.module is not None

    def gradient(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(net(x), torch.arange(len(x)) % 10, reduction="sum")
        return torch.autograd.grad(loss, x)[0]

    x = torch.rand(6, 3, 16, 16)
    reference = gradient(model.double(), x.double())
    in_double = gradient(predictor.module.double(), x.double())
    # The file's weights are float32 with BatchNorm folded in: that rounding alone remains.
    error = (in_double - reference).flatten(1).abs().amax(1) / reference.flatten(1).abs().amax(1)
    assert error.median() <= 1e-4


def test_the_onnx_file_is_what_the_contract_says(exported: Any) -> None:
    _, target = exported("resnet8", "onnx")
    proto = onnx.load(str(target))
    onnx.checker.check_model(proto, full_check=True)
    assert not [tensor for tensor in proto.graph.initializer if tensor.external_data]
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [20]
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    (given,), (out,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("input", "tensor(float)", [3, 16, 16])
    assert isinstance(given.shape[0], str)
    assert (out.name, out.shape[1]) == ("logits", 10)
    record = Artifact.from_mapping(session.get_modelmeta().custom_metadata_map, "file")
    assert record is not None
    assert record.classes[9] == "9"
    assert not {node.op_type for node in proto.graph.node} & {"BatchNormalization", "Identity"}


@pytest.mark.parametrize("opset", [18, 23])
def test_the_opset_is_the_one_asked_for(weights: Path, tmp_path: Path, opset: int) -> None:
    export(weights, "onnx", tmp_path / "s.onnx", opset=opset)
    proto = onnx.load(str(tmp_path / "s.onnx"))
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [opset]


def test_an_old_opset_is_refused_with_the_reason(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--opset must be 18 to 23, got 11"):
        export(weights, "onnx", tmp_path / "s.onnx", opset=11)
    with pytest.raises(UserError, match="format 'torchscript' has no option 'opset'"):
        export(weights, "torchscript", tmp_path / "s.pt", opset=20)
    assert {path.name for path in tmp_path.iterdir()} == {weights.name}


def test_a_file_that_computes_something_else_gets_no_name(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "student.onnx"
    export(weights, "onnx", target)
    before = target.read_bytes()
    honest = EXPORTERS["onnx"].save

    def wrong(model: torch.nn.Module, *more: Any, **options: Any) -> None:
        with torch.no_grad():
            model.get_submodule("net.linear").bias[0] += 0.01  # type: ignore[operator,index]
            honest(model, *more, **options)
            model.get_submodule("net.linear").bias[0] -= 0.01  # type: ignore[operator,index]

    monkeypatch.setitem(exporters.EXPORTERS, "onnx", replace(EXPORTERS["onnx"], save=wrong))
    with pytest.raises(ParityError, match="differs from its source"):
        export(weights, "onnx", target)
    assert target.read_bytes() == before
    with pytest.raises(ParityError):
        export(weights, "onnx", tmp_path / "new.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {weights.name, "student.onnx"}


def test_verification_notices_a_batch_that_is_fixed() -> None:
    """A trace that froze the batch size answers for other sizes with something else, or not at all."""
    model = build_model("resnet8", in_channels=1, classes=10).eval()
    images = np.random.default_rng(0).random((10, 1, 8, 8), dtype=np.float32)

    class Frozen:
        def predict(self, batch: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return model(torch.from_numpy(np.repeat(batch[:1], len(batch), axis=0))).numpy()

    assert not verify(model, Frozen(), images, ThreatModel.of("linf", 0.1)).passed  # type: ignore[arg-type]


def test_parity() -> None:
    logits = np.array([[2.0, 1.0], [1.0, 1.00001]], dtype=np.float32)
    assert compare_logits(logits, logits).passed
    # The second image is a tie within the tolerance: its prediction may differ.
    assert compare_logits(logits, logits + np.float32([[0, 0], [2e-5, 0]])).passed
    assert not compare_logits(logits, logits[:, ::-1]).passed
    assert not compare_logits(logits, logits + np.float32(1e-2)).passed
    assert not compare_logits(logits, np.full_like(logits, np.nan)).passed
    assert not compare_logits(logits, logits[:1]).passed


def test_only_our_own_output_is_replaced(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "student.pt"
    export(weights, "torchscript", target)
    export(weights, "torchscript", target)
    target.write_bytes(b"somebody's thesis")
    with pytest.raises(UserError, match=r"exists and was not written by dgad .--overwrite"):
        export(weights, "torchscript", target)
    assert target.read_bytes() == b"somebody's thesis"
    export(weights, "torchscript", target, overwrite=True)
    assert load(target).classes == 10
    with pytest.raises(UserError, match="must end in .onnx"):
        export(weights, "onnx", tmp_path / "student.pt")
    with pytest.raises(UserError, match="is a folder"):
        (tmp_path / "d.onnx").mkdir()
        export(weights, "onnx", tmp_path / "d.onnx")


def test_a_torchscript_file_has_its_record_inside(exported: Any) -> None:
    _, target = exported("resnet8", "torchscript")
    with zipfile.ZipFile(target) as archive:
        assert any(name.endswith(f"{KEY}.json") for name in archive.namelist())


def graph_of(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] | None = None) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def image(shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info("x", kind, shape)


def out(shape: list[Any]) -> Any:
    return helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def hostile_files(folder: Path) -> dict[str, str]:
    """Files that are not what their suffix says, and what must be said of each."""
    relu = helper.make_node("Relu", ["x"], ["y"])
    two = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("x", "z")]
    add = helper.make_node("Add", ["x", "z"], ["y"])
    nchw, nk = ["n", 3, 8, 8], ["n", 10]
    flat = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Foo", ["f"], ["y"], domain="odd.ops")]
    written = {
        "empty.onnx": (b"", "not a valid ONNX model"),
        "text.onnx": (b"hello, world" * 50, "not a valid ONNX model"),
        "image_to_image.onnx": (graph_of([relu], [image(nchw)], [out(nchw)]), "is not a classifier"),
        "audio.onnx": (graph_of([relu], [image(["n", 16000])], [out(["n", 16000])]), "not an image classifier"),
        "two_inputs.onnx": (graph_of([add], two, [out(nchw)]), "not an image classifier"),
        "integers.onnx": (
            graph_of([helper.make_node("Cast", ["x"], ["y"], to=1)], [image(nchw, TensorProto.UINT8)], [out(nchw)]),
            "not an image classifier",
        ),
        "operator.onnx": (graph_of(flat, [image(nchw)], [out(nk)]), "odd.ops"),
        "text.pt": (b"hello", "is not a TorchScript file"),
        "bomb.pt": (pickle.dumps(Bomb()), "is not a TorchScript file"),
        "text.safetensors": (b"hello", "not a whole safetensors file"),
        "model.h5": (b"hello", "by its suffix '.h5'"),
    }
    for name, (content, _) in written.items():
        (folder / name).write_bytes(content)
    torch.save({"w": torch.zeros(2), "bomb": Bomb()}, folder / "zip_bomb.pt")
    return {name: message for name, (_, message) in written.items()} | {"zip_bomb.pt": "is not a TorchScript file"}


def test_hostile_and_broken_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, message in hostile_files(tmp_path).items():
        with pytest.raises(UserError, match=message):
            load(Path(name))
    with pytest.raises(UserError, match="no such file"):
        load(Path("missing.onnx"))
    assert not Path("exploded").exists()


def test_a_cut_onnx_file(weights: Path, tmp_path: Path) -> None:
    export(weights, "onnx", tmp_path / "s.onnx")
    content = (tmp_path / "s.onnx").read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / "cut.onnx").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UserError, match=r"cut\.onnx"):
            load(tmp_path / "cut.onnx")


def test_external_data_outside_the_folder_is_refused(weights: Path, tmp_path: Path) -> None:
    export(weights, "onnx", tmp_path / "s.onnx")
    proto = onnx.load(str(tmp_path / "s.onnx"))
    (tmp_path / "secret.bin").write_bytes(b"\0" * 10**6)
    inner = tmp_path / "inner"
    inner.mkdir()
    tensor = max(proto.graph.initializer, key=lambda each: len(each.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret.bin"
    (inner / "e.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="not a valid ONNX model"):
        load(inner / "e.onnx")


def test_a_torchscript_file_from_elsewhere_needs_a_shape(tmp_path: Path) -> None:
    with pytest.warns(Warning, match="deprecated"):
        script = torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 1, 2, 2))  # type: ignore[no-untyped-call]
        torch.jit.save(script, str(tmp_path / "f.pt"))
    with pytest.raises(UserError, match="carries no dgad metadata record"):
        load(tmp_path / "f.pt")
    assert load(tmp_path / "f.pt", (1, 2, 2)).classes == 4
