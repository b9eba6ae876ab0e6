"""Reads safetensors and `torch.save` files without running anything. An error says why and what to do."""

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dgad_tk.common import UserError
from dgad_tk.strangers.first_bytes import archive_of, beginning, is_pickle, is_safetensors, placeholder, text_of

# Accuracies are often saved as numpy scalars. Creating one runs no foreign code.
_NUMPY: list[Any] = [
    np.dtype,
    (np.float64().__reduce__()[0], "numpy.core.multiarray.scalar"),  # as NumPy 1 wrote it
    (np.float64().__reduce__()[0], "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")),
]

_AGAIN = "copy it again"
_ANEW = "where you trust the file, load it with its own project and save only the state_dict()"
_EXPECTED = "expected what torch.save or safetensors writes"

_OTHER_KINDS = {b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy array", b"GGUF": "a GGUF file"}

Refusal = tuple[str, str]
"""Why a file cannot be read, such as "it is cut short", and what to do about it."""

_CODE = "it holds more than weights, {} would have to be run"
_MEANINGS: dict[str, Refusal] = {
    r"header too small|invalid header length|central directory|unexpected EOF|EOFError|[Rr]an out of input|truncated": (
        "it is cut short",
        _AGAIN,
    ),
    r"header too large": ("it is no safetensors file, or its first bytes are damaged", _EXPECTED),
    r"deserializing header: (.*)": ("its header is damaged: {}", f"{_AGAIN}, or save it anew"),
    r"reading zip archive: ([^.]*)": ("its archive is damaged: {}", _AGAIN),
    r"Invalid magic number": ("it is a pickle that torch.save did not write", _ANEW),
    r"GLOBAL (\S*(?:DTensor|ShardedTensor|_shard)\S*)": (
        _CODE,
        "it is one process's part; save the full state dict, gathered from all of them",
    ),
    r"GLOBAL (numpy\.\S+)": (_CODE, f"{_ANEW}, its arrays as tensors"),
    r"GLOBAL (\S+)": (_CODE, _ANEW),
    r"WeightsUnpickler error:\s*(.*)": ("it is damaged: {}", f"{_AGAIN}, or save the state dict anew"),
    "": ("it is damaged", f"{_AGAIN}, or save the state dict anew"),
}
"""Patterns of library errors, what each means, and what to do. The first match counts."""


def read_safetensors(path: Path, before: str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors and string metadata of a safetensors file.

    Args:
        before: beginning of the error, such as "cannot read 'x.safetensors' as a teacher".

    Raises:
        UserError: the file is damaged or of another kind.
        OSError: it cannot be opened.
    """
    head = beginning(path)
    refusal = _of_another_kind(head)
    if kind := archive_of(head) or ("a pickle" if is_pickle(head) else ""):
        refusal = refusal or (f"it is {kind}, and no safetensors file", "if torch.save wrote it, name it .pt")
    if refusal is None:
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                return tensors, file.metadata() or {}
        except SafetensorError as error:
            refusal = _by_its_sizes(path) if "not fully covered" in str(error) else _meaning(str(error))
    raise UserError(f"{before}: {refusal[0]}", hint=refusal[1])


def read_pickled(path: Path, before: str) -> object:
    """What `torch.save` wrote, zipped or not, as tensors and plain values. Arguments and errors: `read_safetensors`.

    Objects that would have to be run are refused.
    """
    head = beginning(path)
    zipped = archive_of(head) == "a zip archive"
    refusal = _of_another_kind(head)
    if refusal is None and is_safetensors(head):
        refusal = "it is a safetensors file", "name it .safetensors: files are opened by their suffix"
    if refusal is None and not zipped and not is_pickle(head):
        refusal = "it is no PyTorch checkpoint", _EXPECTED
    if refusal is None:
        with warnings.catch_warnings(record=True) as warned, torch.serialization.safe_globals(_NUMPY):
            warnings.simplefilter("always")
            try:
                content: object = torch.load(path, map_location="cpu", weights_only=True)
                return content
            except Exception as error:  # noqa: BLE001 - torch raises whatever the damaged bytes lead it to
                said = str(error) or type(error).__name__
        protocol = re.search(r"pickle protocol (\d+)", " ".join(str(each.message) for each in warned))
        refusal = _other_archive(path) if zipped else None
        if refusal is None and protocol and "Unsupported operand" in said:
            refusal = f"it is pickled by protocol {protocol[1]}, which is not read without running it", _ANEW
        refusal = refusal or _meaning(said)
    raise UserError(f"{before}: {refusal[0]}", hint=refusal[1])


def _of_another_kind(head: bytes) -> Refusal | None:
    """Why a file is certainly neither safetensors nor of `torch.save`, by its first bytes; else None."""
    if found := placeholder(head):
        return f"it is {found[0]}", found[1]
    if text := text_of(head):
        return f"it is text that begins '{text}'", "it may be what a server answered in its place; download it again"
    archive = archive_of(head)
    if archive and archive != "a zip archive":
        return f"it is {archive}", "unpack it, and give the checkpoint inside"
    kind = next((kind for magic, kind in _OTHER_KINDS.items() if head.startswith(magic)), "")
    return (f"it is {kind}", _EXPECTED) if kind else None


def is_torchscript(path: Path) -> bool:
    """Whether `torch.jit.save` wrote a file, by the names in its archive. Its content is not read."""
    return "constants.pkl" in {name.partition("/")[2] for name in _members(path)}


def _members(path: Path) -> list[str]:
    """The names in a zip archive; an empty list where it is damaged or another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return []


def _other_archive(path: Path) -> Refusal | None:
    """What a zip archive is instead of a file of `torch.save`; None where it may be one."""
    names = _members(path)
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        return (
            "it is a TorchScript file, a program of its own",
            "save the state_dict() of the network that it was made from",
        )
    if "archive_format" in inner:
        return "it is a torch.export file, a program of its own", "name it .pt2"
    if not names or "data.pkl" in inner:
        return None
    return (
        f"it is a zip archive that torch.save did not write, of {', '.join(names[:3])}"[:200],
        "unpack it, and give the checkpoint inside",
    )


def _by_its_sizes(path: Path) -> Refusal:
    """The refusal of a safetensors file whose size is not what its header says."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        there = path.stat().st_size - file.tell()
    promised = max(each["data_offsets"][1] for name, each in header.items() if name != "__metadata__")
    if promised > there:
        return f"it is cut short: of {promised:,} bytes of tensors {there:,} are there", _AGAIN
    return f"{there - promised:,} bytes follow its last tensor", _AGAIN


def _meaning(said: str) -> Refusal:
    """What a library's error means, without torch's advice to load the file unsafely."""
    found = ((re.search(pattern, said), refusal) for pattern, refusal in _MEANINGS.items())
    match, (reason, hint) = next((match, refusal) for match, refusal in found if match)
    return reason.format(*(text[:200] for text in match.groups())), hint
