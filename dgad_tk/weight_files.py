"""Files of weights, read without running anything; where one cannot be read, why, and what helps against that."""

import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dgad_tk.common import UserError, reason_of
from dgad_tk.first_bytes import archive_of, beginning, is_pickle, placeholder_of, text_of

_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors refuses a longer one."""

# Accuracies are often saved as numpy scalars. Making one of these types computes nothing but the value.
_NUMPY: list[Any] = [
    np.dtype,
    (np.float64().__reduce__()[0], "numpy.core.multiarray.scalar"),  # as NumPy 1 wrote it
    (np.float64().__reduce__()[0], "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")),
]

_AGAIN = "copy it again"
_ANEW = "where you trust the file, load it with its own project and save only the state_dict()"
_EXPECTED = "expected what torch.save or safetensors writes"


class Unreadable(Exception):
    """A file of weights cannot be read.

    Args:
        reason: a clause such as "it is cut short".
        hint: what to do about it.
    """

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint

    def as_user_error(self, before: str) -> UserError:
        """The error for the user, `before` saying of which file and as what it was to be read."""
        return UserError(f"{before}: {self.reason}", hint=self.hint)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors and string metadata of a safetensors file.

    Raises:
        Unreadable: it is damaged or something else.
        OSError: it cannot be opened.
    """
    head = beginning(path)
    _refuse_another_kind(head)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise _no_safetensors(path, head, reason_of(error)) from None


def read_pickled(path: Path) -> object:
    """What `torch.save` wrote, zipped or not, as tensors and plain values; nothing in it is run.

    Raises:
        Unreadable: it is damaged, something else, or holds objects that would have to be run.
        OSError: it cannot be opened.
    """
    head = beginning(path)
    _refuse_another_kind(head)
    if _begins_safetensors(head):
        raise Unreadable("it is a safetensors file", "name it .safetensors: files are opened by their suffix")
    zipped = archive_of(head) == "a zip archive"
    if zipped:
        _refuse_another_archive(path)
    elif not is_pickle(head):
        raise Unreadable("it is no PyTorch checkpoint", _EXPECTED)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY):
            warnings.simplefilter("ignore")  # of odd pickles; what they are not is what counts
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises whatever the damaged bytes lead it to
        raise _no_checkpoint(error, _protocol_in(path) if zipped else head[1]) from None
    return content


def _refuse_another_kind(head: bytes) -> None:
    """What no reader of weights need even try."""
    if found := placeholder_of(head):
        raise Unreadable(f"it is {found[0]}", found[1])
    if text := text_of(head):
        raise Unreadable(
            f"it is text that begins '{text}'", "it may be what a server answered in its place; download it again"
        )
    archive = archive_of(head)
    if archive and archive != "a zip archive":
        raise Unreadable(f"it is {archive}", "unpack it, and give the checkpoint inside")
    for magic, kind in ((b"\x89HDF", "an HDF5 file"), (b"\x93NUMPY", "a NumPy array"), (b"GGUF", "a GGUF file")):
        if head.startswith(magic):
            raise Unreadable(f"it is {kind}", _EXPECTED)


def _begins_safetensors(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= _LONGEST_HEADER and re.match(rb"\{\s*[\"}]", head[8:]) is not None


def _no_safetensors(path: Path, head: bytes, said: str) -> Unreadable:
    """Why the library could not read a file, by its sizes: it says of all of them that the header is invalid."""
    size, length = path.stat().st_size, int.from_bytes(head[:8], "little")
    if archive_of(head) or is_pickle(head):
        kind = archive_of(head) or "a pickle"
        return Unreadable(f"it is {kind}, and no safetensors file", "if torch.save wrote it, name it .pt")
    if len(head) < 8:
        return Unreadable(f"it is cut short: {size} bytes are left", _AGAIN)
    if not head.startswith(b"{", 8) and size > 8:
        return Unreadable("it is no safetensors file", _EXPECTED)
    if length > _LONGEST_HEADER:
        return Unreadable("its first bytes, the length of its header, are damaged", _AGAIN)
    if 8 + length > size:
        return Unreadable(f"it is cut short: its header has {length:,} bytes, the whole file {size:,}", _AGAIN)
    with path.open("rb") as file:
        file.seek(8)
        ends = re.findall(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,18})\s*\]', file.read(length))
    promised, there = max(map(int, ends), default=0), size - 8 - length
    if promised > there:
        return Unreadable(f"it is cut short: of {promised:,} bytes of tensors {there:,} are there", _AGAIN)
    if promised < there:
        return Unreadable(f"{there - promised:,} bytes follow its last tensor", _AGAIN)
    return Unreadable(f"its header is damaged: {said}", f"{_AGAIN}, or save it anew")


def _refuse_another_archive(path: Path) -> None:
    """Raises:
    Unreadable: a zip archive is not whole, or not one of `torch.save`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            inner = {name.partition("/")[2] for name in names}
            if "constants.pkl" in inner:
                raise Unreadable(
                    "it is a TorchScript file, a program of its own",
                    "save the state_dict() of the network that it was made from",
                )
            if "archive_format" in inner:
                raise Unreadable("it is a torch.export file, a program of its own", "name it .pt2")
            if "data.pkl" not in inner:
                few = ", ".join(names[:3]) or "nothing"
                raise Unreadable(
                    f"it is a zip archive that torch.save did not write, of {few}"[:200],
                    "unpack it, and give the checkpoint inside",
                )
    except zipfile.BadZipFile as error:
        if zipfile.is_zipfile(path):
            raise Unreadable(f"its archive is damaged: {reason_of(error)}", _AGAIN) from None
        raise Unreadable("it is cut short: the directory at the end of its archive is missing", _AGAIN) from None
    except (NotImplementedError, ValueError) as error:
        raise Unreadable(f"its archive is damaged: {reason_of(error)}", _AGAIN) from None


def _protocol_in(path: Path) -> int:
    """Of the pickle in an archive of `torch.save`; 0 where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(pickled) as file:
                head = file.read(2)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, zlib.error):
        return 0
    return head[1] if head[:1] == b"\x80" and len(head) == 2 else 0


def _no_checkpoint(error: Exception, protocol: int) -> Unreadable:
    """What an error of `torch.load` means, without its advice to load the file unsafely."""
    text = str(error)
    if blocked := re.search(r"GLOBAL (\S+)", text):
        return Unreadable(f"it holds more than weights, {blocked[1]} would have to be run", _instead_of(blocked[1]))
    if isinstance(error, EOFError) or re.search(r"unexpected EOF|[Rr]an out of input|truncated", text):
        return Unreadable("it is cut short", _AGAIN)
    if "Unsupported operand" in text and protocol > 3:
        return Unreadable(f"it is pickled by protocol {protocol}, which is not read without running it", _ANEW)
    if "Invalid magic number" in text:
        return Unreadable("it is a pickle that torch.save did not write", _ANEW)
    reason = _short(text.rpartition("WeightsUnpickler error:")[2]) or type(error).__name__
    return Unreadable(f"it is damaged: {reason}", f"{_AGAIN}, or save the state dict anew")


def _instead_of(name: str) -> str:
    """What to save in the place of an object that is not read."""
    if re.search(r"DTensor|ShardedTensor|_shard", name):
        return "it is one process's part; save the full state dict, gathered from all of them"
    if name.startswith("numpy."):
        return f"{_ANEW}, its arrays as tensors"
    return _ANEW


def _short(text: str) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = re.split(r"In PyTorch 2\.6|Please |Re-running|This is an internal", lines[0])[0] if lines else ""
    return first.strip()[:200]
