"""ONNX files, opened: ONNX Runtime predicts, their twin differentiates."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from dgad_tk.artifact import Artifact
from dgad_tk.common import UserError, sha256_file
from dgad_tk.predictor import Images, Logits, Predictor, check_classes, probe_classes
from exporters.onnx_twin import to_torch
from exporters.read_onnx import read_onnx


def load_onnx(path: Path, input_shape: tuple[int, int, int] | None = None) -> Predictor:
    """Open an ONNX classifier: ONNX Runtime predicts, the twin differentiates.

    Args:
        input_shape: (C, H, W), where the graph leaves its input's shape open.

    Raises:
        UserError: not ONNX, damaged, not an image classifier, or an operator that the twin lacks.
    """
    proto = read_onnx(path)
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
    twin = _twin(proto)
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


def _twin(proto: onnx.ModelProto) -> nn.Module:
    """The differentiable module of a graph."""
    # Channels-last weights make the convolutions of a gradient step a fifth to a third faster on a CPU.
    return to_torch(proto).to(memory_format=torch.channels_last)


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
