"""ONNX files, read without trusting them: from bytes to a graph that is safe to open.

A file `model.onnx` of 90 MB with its weights beside it in `model.data` comes in like this:

    _decode         its bytes begin like no zip archive and no web page, and protobuf decodes them
    check_bounds    2,000 nodes, tensors of the sizes that they say, no value between nodes beyond 4 GB
    read_external   the weights come from `model.data`, which lies in the model's folder
    make_dense      sparse tensors become dense ones
    sort_nodes      nodes come behind those that they read

Nothing of it runs here. Whether its operators and names are right is for ONNX Runtime to say (`onnx_open.open`), which
runs more than ONNX's own checker lets pass.
"""

import mmap
from pathlib import Path

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from dgad_tk.artifacts.record import KEY, Artifact
from dgad_tk.common import UserError
from dgad_tk.strangers.first_bytes import archive_of, refuse_placeholder
from exporters.onnx_read.bounds import check_bounds
from exporters.onnx_read.external_data import read_external
from exporters.onnx_read.parts import DAMAGED, Refused, sort_nodes
from exporters.onnx_read.sparse_tensors import make_dense

MAX_PROTOBUF = 2**31 - 1
MAX_RECORD = 2**20
"""Characters of the metadata record."""


def read_onnx(path: Path) -> onnx.ModelProto:
    """The graph in an ONNX file, with its tensors inside, all of them dense.

    It names no file outside its folder, and takes no absurd amount of memory as far as shape inference can tell.

    Raises:
        UserError: damaged, empty, or absurd.
    """
    proto = _decode(path)
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


def read_onnx_record(path: Path) -> Artifact | None:
    """The metadata record in an ONNX file, read without the rest; None where there is none.

    Raises:
        UserError: the file cannot be read or decoded, or its record is damaged.
    """
    return record_of(_decode(path), path)


def record_of(proto: onnx.ModelProto, path: Path) -> Artifact | None:
    """The metadata record of a graph; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    if len(entries.get(KEY, "")) > MAX_RECORD:
        raise UserError(f"{path}: the metadata record is damaged: it has over 1 MB", hint="export the model again")
    return Artifact.from_mapping(entries, str(path))


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
                cut = _ends_within(content)
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}", hint="check its permissions") from None
    if cut:
        raise UserError(
            f"'{path}' is not a whole ONNX model: it ends within its '{cut}'",
            hint=f"the file may be cut short at {path.stat().st_size:,} bytes; copy it again",
        )
    raise _invalid(path, "it cannot be decoded", hint="is it an ONNX model? export it again")


def _ends_within(content: mmap.mmap) -> str:
    """The field of a model within which `content` ends, as a download that stopped half-way; empty for none.

    A protobuf is a row of fields: a tag, which has the field's number and kind, and then either a number, or a length
    and so many bytes. Writers begin with the first field. A file that begins with another was never a model.
    """
    position, name = 0, ""
    fields = {field.number: field for field in onnx.ModelProto.DESCRIPTOR.fields}
    try:
        while position < len(content):
            tag, position = _varint(content, position)
            field = fields.get(tag >> 3)
            kind = 0 if field is not None and field.type == FieldDescriptor.TYPE_INT64 else 2
            if field is None or tag & 7 != kind or (not name and tag >> 3 != 1):
                return ""
            name = field.name
            length, position = _varint(content, position)
            position += length if kind == 2 else 0
    except IndexError:
        return name
    return name if position > len(content) else ""


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    """A number of 7 bits in each byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise IndexError("a number of more than 64 bits")


def _invalid(path: Path, reason: str, hint: str = DAMAGED) -> UserError:
    return UserError(f"'{path}' is not a valid ONNX model: {reason}", hint=hint)


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
