"""Names from the file system: which of them can be written into records, and which two are the same name.

A file name is bytes. Python represents bytes that are not UTF-8 by lone surrogates, which JSON, YAML, safetensors and
native libraries refuse. And one visible name has several encodings: `é` is one code point (NFC, usual on Linux and
Windows) or two (NFD, usual on a Mac).
"""

import unicodedata
from collections.abc import Sequence

from dgad_tk.common import UserError

RENAME = "rename it; for old archives, `convmv -f latin1 -t utf8 -r --notest FOLDER` does it all at once"

_UNWRITABLE = {"Cs", "Cc", "Zl", "Zp"}
"""Surrogates, control characters, and separators of lines and paragraphs."""


def shown(name: str) -> str:
    """A name that can be printed anywhere: bytes that are not UTF-8 become `\\xfc`, control characters `\\n`."""
    return "".join(_escaped(char) if unicodedata.category(char) in _UNWRITABLE else char for char in name)


def _escaped(char: str) -> str:
    if 0xDC80 <= ord(char) <= 0xDCFF:  # how `os.fsdecode` keeps a byte
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def is_utf8(name: str) -> bool:
    """Whether a name from the file system, an argument or a variable was UTF-8."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def check_utf8(name: str, what: str, hint: str = RENAME) -> None:
    """Raise UserError for a name that is not UTF-8; `what` says what it names, such as "--out"."""
    if not is_utf8(name):
        raise UserError(f"{what} '{shown(name)}' is not UTF-8, and could not be written into any record", hint=hint)


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC), in which equal names are equal text."""
    return unicodedata.normalize("NFC", name)


def same_names(mine: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether two lists hold the same names in the same order, however their accents are encoded."""
    return [composed(name) for name in mine] == [composed(name) for name in theirs]
