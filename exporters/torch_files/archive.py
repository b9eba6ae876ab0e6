"""Zip archives of PyTorch (`.pt`, `.pt2`): what a file is, without running or unpickling anything in it.

Both kinds are programs. TorchScript is code, and `torch.export.load` unpickles, evaluates and calls by name whatever
a manipulated file tells it to. So they are opened only for a user who trusts their author.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from dgad_tk.artifacts.record import KEY, Artifact
from dgad_tk.common import UserError
from dgad_tk.strangers.first_bytes import archive_of, beginning, is_pickle, refuse_placeholder, text_of

EXTRA_FILE = f"{KEY}.json"
MAX_RECORD = 2**20
"""Bytes of the largest metadata record that is read."""

_DAMAGED = (zipfile.BadZipFile, NotImplementedError, ValueError, OSError)
"""What zipfile raises on a damaged archive. The last is a seek outside the file."""
_NOT_WEIGHTS = "only a teacher of `dgad train` is read from weights; export the network itself to ONNX"


@dataclass(frozen=True)
class Kind:
    """A kind of archive that is a program; it holds one of `members`."""

    name: str
    members: frozenset[str]


PROGRAMS = {
    ".pt": Kind("a TorchScript file", frozenset({"constants.pkl"})),
    # PyTorch before 2.8 wrote the second.
    ".pt2": Kind("a torch.export file", frozenset({"archive_format", "serialized_exported_program.json"})),
}
"""By suffix."""


def check_program(path: Path, *, trust: bool) -> None:
    """See that a file is the archive that its suffix says, and that it may be opened.

    Args:
        trust: whether its user trusts its author.

    Raises:
        UserError: it is something else, or not trusted.
        OSError: it cannot be read.
    """
    kind = PROGRAMS[path.suffix]
    refuse_placeholder(path, kind.name)
    if mistaken := _mistaken(path, kind):
        reason, hint = mistaken
        raise UserError(f"'{path}' is not {kind.name}: {reason}", hint=hint)
    if not trust:
        raise UserError(
            f"'{path}' is a program: loading such a file can run any code of its author",
            hint="--trust opens it (in Python trust=True); .onnx and .safetensors are the safe forms, without code",
        )


def _mistaken(path: Path, kind: Kind) -> tuple[str, str] | None:
    """What a file is instead, and what to do about it; None for an archive of this kind."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except _DAMAGED:
        return _no_archive(beginning(path))
    if names & kind.members:
        return None
    for suffix, other in PROGRAMS.items():
        if names & other.members:
            return f"it is {other.name}: name it {suffix}", "files are opened by their suffix"
    if "data.pkl" in names:
        return "it holds plain weights or a pickled module", _NOT_WEIGHTS
    return "it is some other zip archive", "unpack it, and give the model inside"


def _no_archive(head: bytes) -> tuple[str, str]:
    if text := text_of(head):
        return f"it is text that begins '{text}'", "it may be what a server answered in its place; download it again"
    if is_pickle(head):
        return "it is a pickle, which could run anything", _NOT_WEIGHTS
    kind = archive_of(head)
    if kind == "a zip archive":
        return "it is cut short: the directory at the end of its archive is missing or damaged", "copy it again"
    return f"it is {kind or 'no zip archive'}", "unpack it first" if kind else "export the model again"


def read_archived_record(path: Path) -> Artifact | None:
    """The record in an archive of PyTorch, read as text; None where there is none that can be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                readable = member.file_size <= MAX_RECORD and member.compress_type in (0, zipfile.ZIP_DEFLATED)
                if readable and member.filename.endswith(f"/extra/{EXTRA_FILE}"):
                    return Artifact.from_json(archive.read(member).decode(), str(path))
    except (*_DAMAGED, RuntimeError, EOFError, zlib.error):  # the others are of an encrypted or a damaged member
        return None
    return None
