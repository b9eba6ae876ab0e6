"""What a file is by its first bytes, where that differs from its name: a Git LFS pointer, an HTML page, an archive."""

from pathlib import Path

from dgad_tk.common import UserError

_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = (b"/annex/objects/", b"../.git/annex/objects/")
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive", b"BZh": "a bzip2 archive"}
_ARCHIVES |= {b"\xfd7zXZ\x00": "an xz archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!": "a RAR archive"}

_AGAIN = "download it again; the address may ask for a login or a confirmation"


def beginning(path: Path) -> bytes:
    """The first 512 bytes of a file: the `head` of the functions below."""
    with path.open("rb") as file:
        return file.read(512)


def placeholder(head: bytes) -> tuple[str, str] | None:
    """What was stored instead of the file that the user meant, such as "a Git LFS pointer", and a hint; else None."""
    if not head:
        return "an empty file", "copy it again"
    if not head.strip(b"\0"):
        return "a file of zeros", "copy it again; a download or a disk failed half-way"
    if head.startswith(_LFS):
        return "a Git LFS pointer", "fetch the file itself: `git lfs pull`"
    if head.startswith(_ANNEX):
        return "a git-annex pointer", "fetch the file itself: `git annex get`"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or (text[:1] == b"<" and b"<html" in text):
        return "an HTML page", _AGAIN
    if text.startswith(b"<?xml") and b"<svg" not in text:
        return "an XML document", _AGAIN  # what storage services answer with where access is denied
    if text.startswith((b'{"error', b'{"message', b'{"detail')):
        return "a server's error message", _AGAIN
    return None


def archive_of(head: bytes) -> str:
    """Which archive a file is, such as "a zip archive"; else empty. PyTorch's own files are zip archives too."""
    if head[257:262] == b"ustar":
        return "a tar archive"
    return next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), "")


def is_pickle(head: bytes) -> bool:
    """Whether a file may be a pickle of protocol 2 to 5. A safetensors file can begin with the same two bytes."""
    return head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5") and not is_safetensors(head)


def is_safetensors(head: bytes) -> bool:
    """Whether a file may be a safetensors file: 8 bytes with the header's length, here below 4 GB, then the header."""
    return head[4:8] == bytes(4) and head[8:9] == b"{"


def text_of(head: bytes) -> str:
    """The first 60 characters of a plain text file; else empty. Some old image formats and pickles are text too."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return ""
        text = head[: error.start].decode()  # the head may end within a letter
    words = " ".join(text.split())
    return words[:60] if words.isprintable() else ""


def refuse_placeholder(path: Path, what: str) -> None:
    """Raise UserError for a placeholder of a file that should be `what`, such as "an ONNX model"."""
    if found := placeholder(beginning(path)):
        raise UserError(f"'{path}' is {found[0]}, not {what}", hint=found[1])
