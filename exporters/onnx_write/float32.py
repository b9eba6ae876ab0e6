"""ONNX files, written by torch's dynamo exporter."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from dgad_tk.artifacts.record import KEY, Artifact
from dgad_tk.common import UserError, written_aside

INPUT, OUTPUT = "input", "logits"
OPSETS = range(18, 24)
DEFAULT_OPSET = 20
IR_VERSION = 10
"""ONNX Runtime 1.18 and newer load it, and it is the first in which nodes say which module they come from."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Key of a node's metadata: a Python list of the modules it was called in, with its own name last."""
EXTERNAL_BYTES = 1_500_000_000
"""Weights above this are in a file of their own: a protobuf holds at most 2 GiB."""


@dataclass(frozen=True)
class Report:
    """What a format says about a file that it wrote.

    Attributes:
        findings: for people and for JSON, such as how it was calibrated.
        failures: why the file is wrong, whatever a comparison with its source says.
        warnings: what to doubt.
    """

    findings: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def save_onnx(model: nn.Module, artifact: Artifact, path: Path, opset: int = DEFAULT_OPSET) -> None:
    """Write `model` (eval mode) as one ONNX file with a dynamic batch and its metadata record inside.

    Input `input`, float32 `(batch, C, H, W)` in [0, 1]; output `logits`, float32 `(batch, K)`.

    Args:
        opset: 18 to 23; read back from the file.

    Raises:
        UserError: an opset that the exporter cannot write.
    """
    write_onnx(to_onnx(model, artifact, opset), artifact, path)


def to_onnx(model: nn.Module, artifact: Artifact, opset: int) -> onnx.ModelProto:
    """The graph that `save_onnx` writes, without its record.

    Raises:
        UserError: an opset that the exporter cannot write.
    """
    check_opset(opset)
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
    proto.ir_version = IR_VERSION
    for node in proto.graph.node:
        # A comparison layer by layer needs the module's name; the rest are paths of the machine that wrote it.
        kept = [entry for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    return proto


def check_opset(opset: int) -> None:
    """
    Raises:
        UserError: an opset that the exporter cannot write.
    """
    if opset not in OPSETS:
        raise UserError(
            f"--opset must be {OPSETS.start} to {OPSETS.stop - 1}, got {opset}",
            hint="torch's exporter writes 18 and newer, and older requests are silently raised",
        )


def write_onnx(proto: onnx.ModelProto, artifact: Artifact, path: Path) -> None:
    """Check `proto`, put the record in, and write one file, or two if its weights take more than EXTERNAL_BYTES.

    The second file is named after its content, so that the first never finds another network's weights beside it.
    """
    onnx.helper.set_model_props(proto, {KEY: artifact.to_json()})
    weights = proto.graph.initializer
    if sum(len(tensor.raw_data) for tensor in weights) > EXTERNAL_BYTES:
        digest = hashlib.sha256()
        for tensor in weights:
            digest.update(tensor.raw_data)
        location = f"{path.stem}-{digest.hexdigest()[:8]}.data"
        path.with_name(location).unlink(missing_ok=True)  # onnx would append to it
        onnx.save_model(proto, str(path), save_as_external_data=True, location=location)
        onnx.checker.check_model(str(path), full_check=True)
        return
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString()
    with written_aside(path) as aside:
        aside.write_bytes(content)
