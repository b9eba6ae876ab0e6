"""Zip archives of PyTorch (.pt, .pt2), looked at without opening them: what they hold, how large it is, what would run.

`torch.export.load` unpickles without limits what it cannot read otherwise, so a doctored .pt2 runs commands; and
TorchScript is a program. A .pt2 is therefore held to what `torch.export.save` writes for an image classifier. Both of
the zip readers that PyTorch uses, Python's and its own, have to see the same archive.
"""

import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from dgad_tk.common import UserError
from dgad_tk.first_bytes import archive_of, is_pickle, refuse_placeholder, text_of
from exporters.program_text import Forbidden
from exporters.read_program import check_payloads, check_program

MAX_MEMBERS = 60_000
"""More than any network has tensors; beyond 65,535 a zip's own count overflows."""
MAX_DIRECTORY = 16 * 2**20
MAX_TEXT = 64 * 2**20
"""Bytes of a member that is parsed: a graph as JSON (Swin's has 2 MB), or all code of a TorchScript archive."""
MAX_RECORD = 2**20
"""Bytes of the metadata record."""

_PT2_MEMBERS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/[\w.-]+"
)
_TENSOR_MEMBERS = re.compile(
    r"data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)
_OPCODES = re.compile(
    r"PROTO|STOP|MARK|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|BINFLOAT|BINUNICODE|TUPLE[123]?|EMPTY_(TUPLE|LIST|DICT)"
    r"|APPENDS?|SETITEMS?|(LONG_)?BIN(PUT|GET)|BINPERSID|GLOBAL|REDUCE"
)
_GLOBALS = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|parameter)|collections OrderedDict"
    r"|torch (Float|Double|Half|BFloat16|Bool|Byte|Char|Short|Int|Long)Storage"
)

_NOT_WEIGHTS = "only a teacher of `dgad train` is read from weights; export the network itself, to ONNX or TorchScript"


def check_torchscript(path: Path) -> None:
    """See that `path` is an archive of `torch.jit.save`, of a size that can be read. Nothing in it is run or unpickled.

    Raises:
        UserError: it is something else, and what; or it unpacks to far more than its size.
        OSError: it cannot be opened.
    """
    refuse_placeholder(path, "a TorchScript file")
    try:
        sizes, archive = _directory(path)
        with archive:
            if "constants.pkl" not in sizes:
                raise _another(set(sizes))
            if sum(entry.file_size for entry in archive.infolist() if entry.compress_type) > MAX_TEXT:
                raise Forbidden(f"its code unpacks to more than {MAX_TEXT >> 20} MB")
            if any(size > MAX_RECORD for name, size in sizes.items() if name.startswith("extra/")):
                raise Forbidden(f"its metadata record has more than {MAX_RECORD >> 20} MB")
    except Forbidden as error:
        raise UserError(
            f"'{path}' is not a TorchScript file: {error}",
            hint=error.hint or "such a file is not opened; export the model to ONNX, or with --format torchscript",
        ) from None


def check_pt2(path: Path) -> None:
    """See that a .pt2 holds tensors and a graph of aten operators and nothing that `torch.export.load` would run.

    Not foreseen: pickled tensors and objects, compiled code, higher-order and custom operators, archives older than
    PyTorch 2.8.

    Raises:
        UserError: it is something else, and what.
        OSError: it cannot be opened.
    """
    refuse_placeholder(path, "a torch.export file")
    try:
        sizes, archive = _directory(path)
        with archive:
            if "archive_format" not in sizes:
                raise _another(set(sizes))
            read = _records(str(path), archive, sizes, path.stat().st_size, _PT2_MEMBERS)
        for required in ("models/model.json", "data/sample_inputs/model.pt"):
            if required not in sizes:
                raise Forbidden(f"it has no {required}")
        check_program(read("models/model.json"))
        for folder, config in (("weights", "model_weights_config"), ("constants", "model_constants_config")):
            prefix = f"data/{folder}/"
            payloads = {name.removeprefix(prefix): size for name, size in sizes.items() if name.startswith(prefix)}
            check_payloads(read(f"{prefix}{config}.json"), payloads)
        _check_sample_inputs(read("data/sample_inputs/model.pt"))
        for name in sizes:
            if name.startswith("extra/"):
                if sizes[name] > MAX_RECORD:
                    raise Forbidden(f"{name} has more than {MAX_RECORD >> 20} MB")
                read(name).decode()
    except (Forbidden, UnicodeDecodeError) as error:
        raise UserError(
            f"'{path}' is not a plain torch.export file: {error}",
            hint=getattr(error, "hint", "")
            or "torch.export.load could run code in such a file, so it is not opened; export the model to ONNX",
        ) from None


def _directory(source: Path | BytesIO) -> tuple[dict[str, int], zipfile.ZipFile]:
    """Names below the archive's one folder, with their sizes; and the archive, open."""
    try:
        size = source.stat().st_size if isinstance(source, Path) else len(source.getbuffer())
        with source.open("rb") if isinstance(source, Path) else BytesIO(source.getbuffer()) as file:
            head = file.read(512)
            file.seek(max(0, size - 98))
            tail = file.read(98)
            if len(tail) < 22 or tail[-22:-18] != b"PK\5\6":
                raise _without_end(head, followed=zipfile.is_zipfile(file))
            _check_end(tail)
        archive = zipfile.ZipFile(source)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise Forbidden(f"it is no whole zip archive ({error})") from None
    entries = archive.infolist()
    roots = {entry.filename.partition("/")[0] for entry in entries}
    names = [entry.filename.partition("/")[2] for entry in entries]
    if len(roots) > 1 and "serialized_exported_program.json" in roots:
        raise Forbidden(
            "it is of a format before PyTorch 2.8, which is read by unpickling",
            "export the model again, with PyTorch 2.8 or newer, or to ONNX",
        )
    if len(roots) != 1 or not all(names):
        raise Forbidden("its members are not in one folder")
    if len({name.casefold() for name in names}) != len(names):
        raise Forbidden("two members have one name")  # PyTorch looks names up without regard to case
    if any(entry.flag_bits & 1 or entry.compress_type not in (0, 8) for entry in entries):
        raise Forbidden("a member is encrypted, or compressed in an unusual way")
    if sum(entry.compress_size for entry in entries) > size:
        raise Forbidden("its members overlap")
    if any(entry.file_size != entry.compress_size for entry in entries if not entry.compress_type):
        raise Forbidden("a member is not as long as it says")
    return {name: entry.file_size for name, entry in zip(names, entries, strict=True)}, archive


def _check_end(tail: bytes) -> None:
    """The end of a zip file: one directory, of a size that can be read."""
    counts, sizes = [struct.unpack("<H", tail[-12:-10])[0]], [struct.unpack("<I", tail[-10:-6])[0]]
    if tail[-42:-38] == b"PK\6\7":  # the same once more, in 64 bits
        if tail[-98:-94] != b"PK\6\6":
            raise Forbidden("its directory is damaged")
        counts.append(struct.unpack("<Q", tail[-66:-58])[0])
        sizes.append(struct.unpack("<Q", tail[-58:-50])[0])
    if len({*counts}) > 1 or len({*sizes}) > 1:
        raise Forbidden("its two directories differ")
    if counts[0] > MAX_MEMBERS or sizes[0] > MAX_DIRECTORY:
        raise Forbidden(f"it has {counts[0]} members")


def _records(
    source: str | BytesIO, archive: zipfile.ZipFile, sizes: dict[str, int], total: int, allowed: re.Pattern[str]
) -> Callable[[str], bytes]:
    """A function that reads a member as PyTorch will, once its reader is seen to see what Python's sees."""
    for name in sizes:
        if not allowed.fullmatch(name):
            raise Forbidden(f"torch.export.save writes no member '{name[:100]}' for a classifier")
    if any(entry.compress_type for entry in archive.infolist()) or sum(sizes.values()) > total:
        raise Forbidden("it is compressed, as torch.export.save leaves no archive")
    try:
        reader: Any = torch._C.PyTorchFileReader(source)
        found = {name: reader.get_record_size(name) for name in reader.get_all_records()}
    except RuntimeError as error:
        raise Forbidden(str(error).strip().split("\n")[0][:200]) from None
    if found != sizes:
        raise Forbidden("two readers see different members in it")

    def read(name: str) -> bytes:
        if sizes.get(name, 0) > MAX_TEXT:
            raise Forbidden(f"{name} has more than {MAX_TEXT >> 20} MB")
        try:
            return bytes(reader.get_record(name))
        except RuntimeError as error:
            raise Forbidden(str(error).strip().split("\n")[0][:200]) from None

    return read


def _check_sample_inputs(content: bytes) -> None:
    """The one pickle that a plain .pt2 holds: the tensors it was traced with."""
    if not content:
        return
    try:
        sizes, archive = _directory(BytesIO(content))
        with archive:
            read = _records(BytesIO(content), archive, sizes, len(content), _TENSOR_MEMBERS)
        check_pickle(read("data.pkl"))
    except Forbidden as error:
        raise Forbidden(f"in its sample inputs: {error}") from None


def check_pickle(content: bytes) -> None:
    """See that a pickle only rebuilds tensors, without unpickling it.

    Raises:
        Forbidden: it names anything else, or is built in a way that `torch.save` does not use.
    """
    end = -1
    try:
        for opcode, argument, position in pickletools.genops(content):
            if not _OPCODES.fullmatch(opcode.name):
                raise Forbidden(f"its pickle uses {opcode.name}")
            if opcode.name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
                raise Forbidden(f"its pickle calls {str(argument).replace(' ', '.')[:100]}")
            if opcode.name == "LONG_BINPUT" and argument is not None and argument > len(content):
                raise Forbidden("its pickle asks for an absurd memo")  # Python would allocate it
            end = position or 0
    except ValueError as error:
        raise Forbidden(f"its pickle is damaged: {error}") from None
    if end != len(content) - 1:
        raise Forbidden("something follows its pickle")


def _without_end(head: bytes, *, followed: bool) -> Forbidden:
    """What a file is that does not end as a zip archive does, by its first bytes."""
    if followed:
        return Forbidden("bytes follow the end of its archive", "copy it again")
    if text := text_of(head):
        return Forbidden(
            f"it is text that begins '{text}'", "it may be what a server answered in its place; download it again"
        )
    if is_pickle(head):
        return Forbidden("it is a pickle, which could run anything", _NOT_WEIGHTS)
    kind = archive_of(head)
    if kind == "a zip archive":
        return Forbidden("it is cut short: the directory at the end of its archive is missing", "copy it again")
    return Forbidden(f"it is {kind or 'no zip archive'}", f"unpack {kind.removeprefix('a ')} first" if kind else "")


def _another(names: set[str]) -> Forbidden:
    """What a zip archive is that is not what it should be."""
    if "archive_format" in names:
        return Forbidden("it is a torch.export archive: name it .pt2", "files are opened by their suffix")
    if "constants.pkl" in names:
        return Forbidden("it is TorchScript: name it .pt", "files are opened by their suffix")
    if "data.pkl" in names:
        return Forbidden("it holds plain weights or a pickled module", _NOT_WEIGHTS)
    return Forbidden("it is some other zip archive", "unpack it, and give the model inside")
