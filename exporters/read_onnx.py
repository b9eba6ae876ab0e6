"""ONNX files, read without trusting them."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from dgad_tk.artifact import Artifact
from dgad_tk.common import UserError


def read_onnx_record(path: Path) -> Artifact | None:
    """The record in an ONNX file, without opening a session; None where there is none."""
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except DecodeError:
        return None
    return Artifact.from_mapping({entry.key: entry.value for entry in proto.metadata_props}, str(path))


def read_onnx(path: Path) -> onnx.ModelProto:
    """The graph in an ONNX file, with its tensors.

    Raises:
        UserError: damaged, invalid, or empty.
    """
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
