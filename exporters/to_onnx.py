"""ONNX files, written by torch's dynamo exporter."""

from pathlib import Path

import onnx
import torch
from torch import nn

from dgad_tk.artifact import KEY, Artifact
from dgad_tk.common import UserError, written_aside

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
