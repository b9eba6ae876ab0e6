"""Tensors whose numbers lie in files beside the model, opened where ONNX Runtime opens them.

What counts is where a file really lies, not the links on the way: below the folder of the model's path, or below the
folder of the file that this path leads to. A hub's cache of blobs and a mounted volume are read so; what leads
elsewhere is not.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from onnx import ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from exporters.onnx_parts import DAMAGED, Refused, tensors

BESIDE = "external data have to lie in the folder of the model or of the file that it links to; copy them there"


def external_files(model: ModelProto, path: Path) -> set[Path]:
    """The files that hold the tensors of the model at `path`, each once.

    Raises:
        Refused: one of them lies elsewhere, or is missing.
    """
    return {_place(tensor, path) for tensor in tensors(model) if uses_external_data(tensor)}


def check_external(tensor: TensorProto, needed: int, path: Path) -> tuple[Path, int]:
    """The file of a tensor and its size, once it is seen to hold `needed` bytes for it.

    Raises:
        Refused: it lies elsewhere, is missing, or has other bytes than the tensor asks for.
    """
    file = _place(tensor, path)
    available = file.stat().st_size
    start, length, location = _span(tensor, available)
    shorter = f"'{location}' is shorter than the model says: copy it again"
    if start + length > available or length < 0:
        raise Refused(f"tensor '{tensor.name}' has its data beyond the end of '{location}'", shorter, valid=False)
    if length != needed:
        to_the_end = all(entry.key != "length" for entry in tensor.external_data)
        raise Refused(
            f"tensor '{tensor.name}' of shape {shape_of(tensor)} needs {needed:,} bytes, is given {length:,}",
            shorter if to_the_end and length < needed else DAMAGED,
            valid=False,
        )
    return file, available


def read_external(model: ModelProto, path: Path) -> None:
    """Bring what lies in other files into `model`, in place, once `check_external` has passed.

    Raises:
        Refused: a file is not what it was then.
        OSError: it cannot be read.
    """
    for tensor in tensors(model):
        if not uses_external_data(tensor):
            continue
        file = _place(tensor, path)
        start, length, location = _span(tensor, file.stat().st_size)
        content = _read(file, start, length)
        if len(content) != length:
            raise Refused(f"'{location}' changed while it was read", DAMAGED)
        tensor.raw_data = content
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def shape_of(tensor: TensorProto) -> str:
    """The first axes of it, for people."""
    return str(list(tensor.dims[:8]))


def _read(file: Path, start: int, length: int) -> bytes:
    """Bytes of a regular file; neither a link nor a pipe that took its place since is followed."""
    handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(handle, "rb") as opened:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return b""
        opened.seek(start)
        return opened.read(length)


def _place(tensor: TensorProto, path: Path) -> Path:
    """Where a tensor's file really lies."""
    location = _location(tensor)
    try:
        file = (path.parent / location).resolve()
        homes = [path.parent.resolve(), path.resolve().parent]
        inside = location and not Path(location).is_absolute() and _is_below(file, homes)
        if not inside:
            raise Refused(f"tensor '{tensor.name}' has its data outside the model's folder: '{location[:100]}'", BESIDE)
        if not file.is_file():
            raise Refused(
                f"tensor '{tensor.name}' has its data in a file that is missing: '{location[:100]}'",
                f"put '{location[:100]}' beside the model: it holds its weights",
            )
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a zero byte, a loop of links
        raise Refused(f"tensor '{tensor.name}' names no file for its data: {error}", DAMAGED, valid=False) from None
    return file


def _is_below(file: Path, folders: Iterable[Path]) -> bool:
    return any(file.is_relative_to(folder) for folder in folders)


def _span(tensor: TensorProto, available: int) -> tuple[int, int, str]:
    """Where a tensor's bytes begin, how many there are, and the name of their file."""
    try:
        info = ExternalDataInfo(tensor)
    except ValueError as error:
        raise Refused(f"tensor '{tensor.name}': {error}", DAMAGED, valid=False) from None
    start = info.offset or 0
    length = available - start if info.length is None else info.length
    return start, length, _location(tensor)[:100]


def _location(tensor: TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
