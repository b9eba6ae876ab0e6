"""ONNX files: written by torch's dynamo exporter, run by ONNX Runtime, differentiated through their twin."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from torch import nn

from dgad_tk.artifact import KEY, Artifact
from dgad_tk.common import UserError, sha256_file, written_aside
from dgad_tk.predictor import Images, Logits, Predictor, check_classes, probe_classes
from exporters.onnx_twin import to_torch

INPUT, OUTPUT = "input", "logits"
OPSETS = range(18, 24)
DEFAULT_OPSET = 20


def save_onnx(model: nn.Module, artifact: Artifact, path: Path, opset: int = DEFAULT_OPSET) -> None:
    """Write `model` (eval mode) as one ONNX file with a dynamic batch and its metadata record inside.

    Input `input`, float32 `(batch, C, H, W)` in [0, 1]; output `logits`, float32 `(batch, K)`.

    Args:
        opset: 18 to 23; read back from the file.

    Raises:
        UserError: an opset that the exporter cannot write.
    """
    if opset not in OPSETS:
        raise UserError(
            f"--opset must be {OPSETS.start} to {OPSETS.stop - 1}, got {opset}",
            hint="torch's exporter writes 18 and newer, and older requests are silently raised",
        )
    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(2, *artifact.input_shape),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=opset,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    written = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise UserError(f"asked for opset {opset}, the exporter wrote {written}", hint=f"use --opset {written}")
    onnx.helper.set_model_props(proto, {KEY: artifact.to_json()})
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString()
    with written_aside(path) as aside:
        aside.write_bytes(content)


def read_onnx_record(path: Path) -> Artifact | None:
    """The record in an ONNX file, without opening a session; None where there is none."""
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except DecodeError:
        return None
    return Artifact.from_mapping({entry.key: entry.value for entry in proto.metadata_props}, str(path))


def load_onnx(path: Path, input_shape: tuple[int, int, int] | None = None) -> Predictor:
    """Open an ONNX classifier: ONNX Runtime predicts, the twin differentiates.

    Args:
        input_shape: (C, H, W), where the graph leaves its input's shape open.

    Raises:
        UserError: not ONNX, damaged, not an image classifier, or an operator that the twin lacks.
    """
    proto = _read(path)
    artifact = Artifact.from_mapping({entry.key: entry.value for entry in proto.metadata_props}, str(path))
    session = _session(path)
    shape = _input_shape(session, artifact, input_shape, path)
    name = session.get_inputs()[0].name
    output = session.get_outputs()[0].name

    def predict(images: Images) -> Logits:
        (logits,) = session.run([output], {name: np.ascontiguousarray(images, dtype=np.float32)})
        return np.asarray(logits, dtype=np.float32)

    classes = probe_classes(predict, shape, str(path))
    check_classes(classes, artifact, str(path))
    # Channels-last weights make the convolutions of a gradient step a fifth to a third faster on a CPU.
    twin = to_torch(proto).to(memory_format=torch.channels_last)
    return Predictor(
        predict,
        twin.to("cuda" if torch.cuda.is_available() else "cpu"),
        shape,
        classes,
        "onnx",
        path,
        sha256_file(path),
        artifact,
        runtime=f"onnxruntime {onnxruntime.__version__} {session.get_providers()[0]}",
    )


def _read(path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or "it cannot be decoded"
        raise UserError(
            f"'{path}' is not a valid ONNX model: {reason}", hint="the file may be cut short; export it again"
        ) from None
    if not proto.graph.node:
        raise UserError(f"'{path}' is not a valid ONNX model: its graph is empty", hint="export it again")
    return proto


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Between its calls torch computes gradients; a pool that spins while it waits takes the cores away from that.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    cuda = torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    # TF32 moves logits by 1e-3, more than a verdict may depend on.
    providers = [("CUDAExecutionProvider", {"use_tf32": "0"})] if cuda else []
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"ONNX Runtime cannot load '{path}': {reason}", hint="export it again") from None


def _input_shape(
    session: onnxruntime.InferenceSession,
    artifact: Artifact | None,
    given: tuple[int, int, int] | None,
    path: Path,
) -> tuple[int, int, int]:
    inputs = session.get_inputs()
    hint = "expected one float32 input (N, C, H, W) and logits (N, K)"
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        found = ", ".join(f"{entry.name}: {entry.type} {entry.shape}" for entry in inputs) or "no input"
        raise UserError(f"'{path}' is not an image classifier: it takes {found}", hint=hint)
    if isinstance(inputs[0].shape[0], int):
        raise UserError(
            f"'{path}' takes batches of exactly {inputs[0].shape[0]}: {inputs[0].shape}",
            hint="export it with a dynamic batch dimension",
        )
    declared = inputs[0].shape[1:]
    if all(isinstance(size, int) for size in declared):
        channels, height, width = declared
        return channels, height, width
    shape = artifact.input_shape if artifact else given
    if shape is None:
        raise UserError(
            f"'{path}' leaves its input's shape open: {inputs[0].shape}",
            hint="name the images with --dataset",
        )
    return shape
