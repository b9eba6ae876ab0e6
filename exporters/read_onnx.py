"""ONNX files, read without trusting them."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from dgad_tk.artifact import KEY, Artifact
from dgad_tk.common import UserError
from exporters.node_order import sort_nodes
from exporters.onnx_bounds import Absurd, check_bounds
from exporters.protobuf_fields import too_many_fields

MAX_PROTOBUF = 2**31 - 1
MAX_RECORD = 2**20
"""Characters of the metadata record."""


def read_onnx_record(path: Path) -> Artifact | None:
    """The record in an ONNX file, without opening a session; None where there is none.

    Raises:
        UserError: the file cannot be read or decoded, or its record is damaged.
    """
    return _record(_decode(path), path)


def read_onnx(path: Path) -> onnx.ModelProto:
    """The graph in an ONNX file, with its tensors.

    Nothing of it was run; it names no file outside its folder, and takes no absurd amount of memory as far as shape
    inference can tell.

    Raises:
        UserError: damaged, invalid, empty, or absurd.
    """
    proto = _decode(path)
    _record(proto, path)
    if not proto.graph.node:
        raise _invalid(path, "its graph is empty")
    try:
        check_bounds(proto, path.stat().st_size, path.parent)
        sort_nodes(proto.graph)
        with _declared_shapes(proto.graph):
            onnx.checker.check_model(proto if not _external(proto) else str(path))
        load_external_data_for_model(proto, str(path.parent))
    except (Absurd, onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, OSError) as error:
        raise _invalid(path, str(error)) from None
    return proto


@contextmanager
def _declared_shapes(graph: onnx.GraphProto) -> Iterator[None]:
    """ONNX's checker wants a shape for every input and output. Converters leave out what they do not know, and no
    runtime minds."""
    kinds = [info.type.tensor_type for info in (*graph.input, *graph.output) if info.type.HasField("tensor_type")]
    unknown = [kind for kind in kinds if not kind.HasField("shape")]
    for kind in unknown:
        kind.shape.SetInParent()
    try:
        yield
    finally:
        for kind in unknown:
            kind.ClearField("shape")


def _decode(path: Path) -> onnx.ModelProto:
    """The protobuf, without external data."""
    if not path.is_file():  # reading a device or a pipe might never end
        raise _invalid(path, "it is not a file")
    if path.stat().st_size > MAX_PROTOBUF:
        raise UserError(
            f"'{path}' is not a valid ONNX model: it has more than 2 GB, which no protobuf has",
            hint="save large weights as external data, beside the model",
        )
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise _invalid(path, "it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if too_many_fields(content, onnx.ModelProto.DESCRIPTOR):
                    raise _invalid(path, "it has millions of parts")
            proto = onnx.ModelProto()
            proto.ParseFromString(file.read())
            return proto
    except (DecodeError, ValueError):
        raise _invalid(path, "it cannot be decoded") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}", hint="check its permissions") from None


def _record(proto: onnx.ModelProto, path: Path) -> Artifact | None:
    """The metadata record of a graph."""
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    if len(entries.get(KEY, "")) > MAX_RECORD:
        raise UserError(f"{path}: the metadata record is damaged: it has over 1 MB", hint="export the model again")
    return Artifact.from_mapping(entries, str(path))


def _external(proto: onnx.ModelProto) -> bool:
    return any(uses_external_data(tensor) for tensor in proto.graph.initializer)


def _invalid(path: Path, reason: str) -> UserError:
    reason = " ".join(reason.split())[:200] or "it cannot be decoded"
    return UserError(f"'{path}' is not a valid ONNX model: {reason}", hint="the file may be cut short; export it again")
