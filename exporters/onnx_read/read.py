"""ONNX files, read without trusting them."""

import mmap
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from dgad_tk.artifacts.record import KEY, Artifact
from dgad_tk.common import UserError
from dgad_tk.strangers.first_bytes import archive_of, refuse_placeholder
from exporters.onnx_read.bounds import check_bounds
from exporters.onnx_read.cut_short import ends_early
from exporters.onnx_read.external_data import read_external
from exporters.onnx_read.node_order import sort_nodes
from exporters.onnx_read.parts import DAMAGED, Refused
from exporters.onnx_read.sparse_tensors import make_dense

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
    """The graph in an ONNX file, with its tensors inside, all of them dense.

    Nothing of it was run; it names no file outside its folder, and takes no absurd amount of memory as far as shape
    inference can tell. Whether its operators and names are right is for ONNX Runtime to say, which runs more than
    ONNX's own checker lets pass.

    Raises:
        UserError: damaged, empty, or absurd.
    """
    proto = _decode(path)
    _record(proto, path)
    if not proto.graph.node:
        raise _invalid(path, "its graph is empty")
    try:
        check_bounds(proto, path)
        read_external(proto, path)
        make_dense(proto)
    except Refused as error:
        what = "is not opened" if error.valid else "is not a valid ONNX model"
        raise UserError(f"'{path}' {what}: {_short(error.reason)}", hint=_short(error.hint)) from None
    except OSError as error:
        raise UserError(f"cannot read the data of '{path}': {error.strerror}", hint="check their permissions") from None
    sort_nodes(proto.graph)
    return proto


def _decode(path: Path) -> onnx.ModelProto:
    """The protobuf, without external data."""
    if not path.is_file():  # reading a device or a pipe might never end
        raise _invalid(path, "it is not a file", hint="name the model file itself")
    if path.stat().st_size > MAX_PROTOBUF:
        raise _invalid(
            path,
            "it has more than 2 GB, which no protobuf has",
            hint="save large weights as external data, beside the model",
        )
    try:
        refuse_placeholder(path, "an ONNX model")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if archive := archive_of(content[:16]):
                raise _invalid(
                    path, f"it is {archive}", hint="unpack it, or name it by what it is, such as .pt or .pt2"
                )
            try:
                proto = onnx.ModelProto()
                proto.ParseFromString(content[:])
                return proto
            except (DecodeError, ValueError):
                cut = ends_early(content, onnx.ModelProto.DESCRIPTOR)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}", hint="check its permissions") from None
    if cut:
        raise UserError(
            f"'{path}' is not a whole ONNX model: it ends within its '{cut}'",
            hint=f"the file may be cut short at {path.stat().st_size:,} bytes; copy it again",
        )
    raise _invalid(path, "it cannot be decoded", hint="is it an ONNX model? export it again")


def _record(proto: onnx.ModelProto, path: Path) -> Artifact | None:
    """The metadata record of a graph."""
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    if len(entries.get(KEY, "")) > MAX_RECORD:
        raise UserError(f"{path}: the metadata record is damaged: it has over 1 MB", hint="export the model again")
    return Artifact.from_mapping(entries, str(path))


def _invalid(path: Path, reason: str, hint: str = DAMAGED) -> UserError:
    return UserError(f"'{path}' is not a valid ONNX model: {reason}", hint=hint)


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
