"""Exports: verified against their source, self-describing, never half-written; odd files are refused clearly."""

import shutil
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
from hostile_files import graph_of, hostile_files, image, out
from onnx import TensorProto, helper, numpy_helper
from shared import Victim, artifact, randomise_batch_norm

from dgad_tk.artifacts.record import KEY, Artifact
from dgad_tk.artifacts.weights import load_model, save_weights
from dgad_tk.common import UserError
from dgad_tk.models import build_model
from exporters.export import ParityError, Source, export
from exporters.formats import EXPORTERS, load
from exporters.onnx_write.float16 import to_float16
from exporters.onnx_write.float32 import write_onnx
from exporters.onnx_write.int8 import Int8

FLOAT = [format for format in EXPORTERS if format != "onnx-int8"]
"""Formats that answer as their source does. INT8 of an untrained network need not: its answers are all near ties."""
APART = {"onnx-fp16": 5e-3}
"""How far logits may be apart, relative, where a format rounds; 1e-5 elsewhere."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every model in every format, each made once."""

    def make(name: str, format: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.getbasetemp() / name
        source, target = folder / "weights.safetensors", folder / EXPORTERS[format].filename
        if not source.exists():
            torch.manual_seed(3)
            mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
            model = randomise_batch_norm(build_model(name, in_channels=3, classes=10, mean=mean, std=std))
            record = artifact(name, (3, 16, 16), normalize={"mean": mean, "std": std})
            save_weights(source, model, record)
        if not target.exists():
            export(source, format, target)
        return source, target

    return make


@pytest.mark.parametrize(
    ("format", "name"),
    [
        pytest.param(format, name, marks=[pytest.mark.slow] if format == "onnx-fp16" and name != "resnet8" else [])
        for format in FLOAT
        for name in SMALLEST
    ],
)
def test_every_model_in_every_format(exported: Any, name: str, format: str) -> None:
    source, target = exported(name, format)
    model, _ = load_model(source)
    predictor = load(target, trust=True)
    assert (predictor.input_shape, predictor.classes) == ((3, 16, 16), 10)
    assert predictor.format == ("onnx" if target.suffix == ".onnx" else format)
    assert predictor.artifact is not None
    assert predictor.artifact.source_sha256
    assert predictor.artifact.model == name
    assert predictor.artifact.precision == ("float16" if format == "onnx-fp16" else "float32")
    assert EXPORTERS[format].record(target) == predictor.artifact
    allowed = APART.get(format, 1e-5)
    for batch in (1, 2, 5):
        x = np.random.default_rng(batch).random((batch, 3, 16, 16), dtype=np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(x)).numpy()
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.abs(predictor.predict(x) - expected).max() <= allowed * scale
        assert predictor.module is not None
        with torch.no_grad():
            assert np.abs(predictor.module(torch.from_numpy(x)).numpy() - expected).max() <= allowed * scale


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
    assert proto.ir_version == 10
    assert str(Path(torch.__file__).parent).encode() not in target.read_bytes()  # no paths of the machine it is from
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


@pytest.mark.parametrize(
    "opset", [18, 23, *(pytest.param(opset, marks=pytest.mark.slow) for opset in (19, 20, 21, 22))]
)
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


LAYER = "net.layer2.0.conv2"


def with_a_wrong_layer(save: Any, file: Path | None) -> Any:
    """`save`, with the weights of LAYER negated: in the network, or in a finished ONNX file."""

    def wrong(model: torch.nn.Module, record: Artifact, path: Path, **options: Any) -> Any:
        if file is not None:
            proto = onnx.load(str(file))
            (tensor,) = (each for each in proto.graph.initializer if each.name == f"{LAYER}.weight")
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
            return write_onnx(proto, record, path)
        weight = model.get_submodule(LAYER).weight
        with torch.no_grad():
            weight.neg_()  # type: ignore[operator]
            try:
                return save(model, record, path, **options)
            finally:
                weight.neg_()  # type: ignore[operator]

    return wrong


@pytest.mark.parametrize("format", FLOAT)
def test_a_file_that_computes_something_else_gets_no_name(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """It is kept as `.failed`, an older good one stays, and the layer that is wrong in the file is named."""
    weights, good = exported("resnet8", format)
    target = tmp_path / good.name
    shutil.copy(good, target)
    row = EXPORTERS[format]
    onnx_file = good if good.suffix == ".onnx" else None
    monkeypatch.setitem(EXPORTERS, format, replace(row, save=with_a_wrong_layer(row.save, onnx_file)))
    # BatchNorm is folded into the convolution in ONNX files: there the layer is both.
    name = rf"net\.layer2\.0\.bn2 \(Conv of {LAYER}\.weight," if onnx_file else rf"{LAYER}\b"
    said = f"differs from its source: .*; the first layer to differ is {name}.*; see '.*failed'"
    with pytest.raises(ParityError, match=said):
        export(weights, format, target)
    assert target.read_bytes() == good.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {target.name, f"{target.name}.failed"}
    assert target.with_name(f"{target.name}.failed").read_bytes() != good.read_bytes()


def test_int8_is_held_to_its_answers(
    exported: Any, victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, images, _ = victim
    save_weights(tmp_path / "weights.safetensors", net, artifact())
    source = Source(tmp_path / "weights.safetensors", images)
    target = tmp_path / "student.int8.onnx"
    written = export(source, "onnx-int8", target, images=images, int8=Int8(32))
    assert written.parity.sets["clean"].agreement >= 0.95
    assert written.parity.sets["clean"].relative > 1e-4
    assert written.parity.adversarial > 10
    assert written.report.findings["quantised_nodes"] > 5
    assert load(target).artifact.precision == "int8"  # type: ignore[union-attr]
    before = target.read_bytes()
    row = EXPORTERS["onnx-int8"]
    monkeypatch.setitem(EXPORTERS, "onnx-int8", replace(row, save=with_a_wrong_layer(row.save, None)))
    with pytest.raises(ParityError, match=rf"equal predictions on 48 clean .* jump is at .*\(Conv of {LAYER}\.weight,"):
        export(source, "onnx-int8", target, images=images, int8=Int8(32))
    assert target.read_bytes() == before


def test_large_weights_stand_in_a_second_file(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, single = exported("resnet8", "onnx")
    proto = onnx.load(str(single))

    def save(model: torch.nn.Module, record: Artifact, path: Path) -> None:
        write_onnx(onnx.ModelProto.FromString(proto.SerializeToString()), record, path)

    monkeypatch.setattr("exporters.onnx_write.float32.EXTERNAL_BYTES", 100_000)
    monkeypatch.setitem(EXPORTERS, "onnx", replace(EXPORTERS["onnx"], save=save))
    target = export(source, "onnx", tmp_path / "student.onnx").path
    (data,) = tmp_path.glob("student-*.data")
    assert {path.name for path in tmp_path.iterdir()} == {target.name, data.name}
    assert target.stat().st_size < 60_000 < 250_000 < data.stat().st_size
    onnx.checker.check_model(str(target), full_check=True)
    x = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    first, second = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]
        for path in (single, target)
    )
    assert np.array_equal(first, second)
    assert load(target).predict(x).shape == (3, 10)
    # One that fails has its weights under another name: the good file is left whole.
    content = data.read_bytes()
    wrong = with_a_wrong_layer(save, single)
    monkeypatch.setitem(EXPORTERS, "onnx", replace(EXPORTERS["onnx"], save=wrong))
    with pytest.raises(ParityError, match=rf"first layer to differ is .*Conv of {LAYER}\.weight"):
        export(source, "onnx", target)
    assert data.read_bytes() == content
    assert len(list(tmp_path.glob("student-*.data"))) == 2


def test_half_precision_is_half_the_size_and_keeps_its_ends(weights: Path, exported: Any, tmp_path: Path) -> None:
    _, target = exported("resnet8", "onnx-fp16")
    proto = onnx.load(str(target))
    onnx.checker.check_model(proto, full_check=True)
    kinds = {tensor.data_type for tensor in proto.graph.initializer if numpy_helper.to_array(tensor).size > 10}
    assert kinds == {TensorProto.FLOAT16}
    _, single = exported("resnet8", "onnx")
    assert 0.45 <= target.stat().st_size / single.stat().st_size <= 0.6
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    assert [each.type for each in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2


def test_half_precision_that_overflows_is_noticed(weights: Path, tmp_path: Path) -> None:
    model, record = load_model(weights)
    with torch.no_grad():
        model.get_submodule("net.linear").bias += 1e6  # type: ignore[operator]
    save_weights(weights, model, record)
    with pytest.raises(ParityError, match=r"first layer to differ is net\.linear \(Gemm of net\.linear\.weight, "):
        export(weights, "onnx-fp16", tmp_path / "s.onnx")


def test_half_precision_of_a_graph_with_casts_in_the_middle() -> None:
    """Operators that the converter leaves in float32 get casts, which it writes last: they have to come in order."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
        helper.make_node("CumSum", ["b", "axis"], ["y"]),
    ]
    constants = [
        helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2]),
        helper.make_tensor("axis", TensorProto.INT64, [], [3]),
    ]
    content = graph_of(nodes, [image(["n", 3, 4, 4])], [out(["n", 3, 8, 8])], constants)
    half = to_float16(onnx.ModelProto.FromString(content))
    onnx.checker.check_model(half, full_check=True)
    x = np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32)
    expected, found = (
        onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for each in (content, half.SerializeToString())
    )
    assert found.dtype == np.float32
    assert np.abs(expected - found).max() <= 2e-3 * np.abs(expected).max()


def test_only_our_own_output_is_replaced(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "student.pt"
    export(weights, "torchscript", target)
    export(weights, "torchscript", target)
    target.write_bytes(b"somebody's thesis")
    with pytest.raises(UserError, match=r"exists and was not written by dgad .--overwrite"):
        export(weights, "torchscript", target)
    assert target.read_bytes() == b"somebody's thesis"
    export(weights, "torchscript", target, overwrite=True)
    assert load(target, trust=True).classes == 10
    with pytest.raises(UserError, match="must end in .onnx"):
        export(weights, "onnx", tmp_path / "student.pt")
    with pytest.raises(UserError, match="is a folder"):
        (tmp_path / "d.onnx").mkdir()
        export(weights, "onnx", tmp_path / "d.onnx")


@pytest.mark.parametrize("format", ["torchscript", "torch-export"])
def test_an_archive_of_pytorch_has_its_record_inside(exported: Any, format: str) -> None:
    _, target = exported("resnet8", format)
    with zipfile.ZipFile(target) as archive:
        assert any(name.endswith(f"{KEY}.json") for name in archive.namelist())


def test_hostile_and_broken_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, message in hostile_files(tmp_path).items():
        with pytest.raises(UserError, match=message):
            load(Path(name))
    with pytest.raises(UserError, match="no such file"):
        load(Path("missing.onnx"))
    assert not Path("exploded").exists()


def test_a_cut_onnx_file(exported: Any, tmp_path: Path) -> None:
    content = exported("resnet8", "onnx")[1].read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / "cut.onnx").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UserError, match=r"cut\.onnx"):
            load(tmp_path / "cut.onnx")


def test_external_data_outside_the_folder_is_refused(exported: Any, tmp_path: Path) -> None:
    proto = onnx.load(str(exported("resnet8", "onnx")[1]))
    (tmp_path / "secret.bin").write_bytes(b"\0" * 10**6)
    inner = tmp_path / "inner"
    inner.mkdir()
    tensor = max(proto.graph.initializer, key=lambda each: len(each.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret.bin"
    (inner / "e.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="outside the model's folder"):
        load(inner / "e.onnx")


def test_a_torchscript_file_from_elsewhere_needs_a_shape(tmp_path: Path) -> None:
    with pytest.warns(Warning, match="deprecated"):
        script = torch.jit.trace(torch.nn.Flatten(), torch.zeros(1, 1, 2, 2))  # type: ignore[no-untyped-call]
        torch.jit.save(script, str(tmp_path / "f.pt"))
    with pytest.raises(UserError, match="carries no dgad metadata record"):
        load(tmp_path / "f.pt", trust=True)
    assert load(tmp_path / "f.pt", (1, 2, 2), trust=True).classes == 4
