"""Tensors whose numbers lie in files beside the model, opened where ONNX Runtime opens them.

Links are followed first. Then such a file has to lie below the folder of the model's path, or below the folder of the
file that this path leads to. So a hub's cache of blobs and a mounted volume are read, and other places are not.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from exporters.onnx_read.parts import DAMAGED, Refused, tensors

BESIDE = "external data have to lie in the folder of the model or of the file that it links to; copy them there"


@dataclass(frozen=True)
class Extent:
    """Where the bytes of a tensor are.

    Attributes:
        available: bytes of the file.
        start, length: of the tensor's bytes in it.
        name: of the file, as the model has it, cut off where it is long.
    """

    file: Path
    available: int
    start: int
    length: int
    name: str


def external_files(model: ModelProto, path: Path) -> set[Path]:
    """The files that hold the tensors of the model at `path`, each once.

    Raises:
        Refused: one of them lies elsewhere, or is missing.
    """
    return {extent_of(tensor, path).file for tensor in tensors(model) if uses_external_data(tensor)}


def extent_of(tensor: TensorProto, path: Path) -> Extent:
    """Where the bytes of a tensor of the model at `path` really lie.

    Raises:
        Refused: outside of the model's folder, or nowhere.
    """
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    name = location[:100]
    try:
        file = (path.parent / location).resolve()
        homes = (path.parent.resolve(), path.resolve().parent)
        if not location or Path(location).is_absolute() or not any(file.is_relative_to(home) for home in homes):
            raise Refused(f"tensor '{tensor.name}' has its data outside the model's folder: '{name}'", BESIDE)
        if not file.is_file():
            raise Refused(
                f"tensor '{tensor.name}' has its data in a file that is missing: '{name}'",
                f"put '{name}' beside the model: it holds its weights",
            )
        available = file.stat().st_size
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a zero byte, a loop of links
        raise Refused(f"tensor '{tensor.name}' names no file for its data: {error}", DAMAGED, valid=False) from None
    try:
        info = ExternalDataInfo(tensor)
    except ValueError as error:
        raise Refused(f"tensor '{tensor.name}': {error}", DAMAGED, valid=False) from None
    start = info.offset or 0
    return Extent(file, available, start, available - start if info.length is None else info.length, name)


def check_external(tensor: TensorProto, needed: int, path: Path) -> Extent:
    """Where the bytes of a tensor are, which are `needed` many.

    Raises:
        Refused: they lie elsewhere, are missing, or are not as many.
    """
    found = extent_of(tensor, path)
    shorter = f"'{found.name}' is shorter than the model says: copy it again"
    if found.start + found.length > found.available or found.length < 0:
        raise Refused(f"tensor '{tensor.name}' has its data beyond the end of '{found.name}'", shorter, valid=False)
    if found.length != needed:
        to_the_end = all(entry.key != "length" for entry in tensor.external_data)
        raise Refused(
            f"tensor '{tensor.name}' of shape {shown_shape(tensor)} needs {needed:,} bytes, is given {found.length:,}",
            shorter if to_the_end and found.length < needed else DAMAGED,
            valid=False,
        )
    return found


def read_external(model: ModelProto, path: Path) -> None:
    """Bring what lies in other files into `model`, in place, once `check_external` has passed.

    Raises:
        Refused: a file has changed since then.
        OSError: it cannot be read.
    """
    for tensor in tensors(model):
        if not uses_external_data(tensor):
            continue
        found = extent_of(tensor, path)
        # A link or a pipe that has taken the file's place since then is not followed.
        handle = os.open(found.file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as opened:
            opened.seek(found.start)
            content = opened.read(found.length) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
        if len(content) != found.length:
            raise Refused(f"'{found.name}' changed while it was read", DAMAGED)
        tensor.raw_data = content
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def shown_shape(tensor: TensorProto) -> str:
    """The shape of a tensor for messages, of at most 8 axes."""
    return str(list(tensor.dims[:8]))
