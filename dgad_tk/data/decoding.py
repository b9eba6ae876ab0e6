"""From image files to arrays of one size; of files that are no images, how many there are and what they are instead."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dgad_tk.common import UserError
from dgad_tk.data.fingerprint import SourceFile
from dgad_tk.data.spec import Images
from dgad_tk.first_bytes import archive_of, beginning, placeholder_of
from dgad_tk.names import shown

BLOCK_BYTES = 2**22
THREADS_FROM_BYTES = 4096
"""Mean file size from which threads pay. Two are 2.0 times as fast as one at 90 KB a file, 1.4 times at 7 KB,
but 0.7 times at CIFAR's 1 KB, where most of the work needs the interpreter's lock."""
COUNTED = 10_000
"""How many images more are looked at when one is bad: a user learns of all of them and does not wait for ever."""
NAMED = 3

_AGAIN = "copy it again, or take it out of the folder"
_CONVERT = "convert it to .png or .jpg"
_BRANDS = {b"heic": "a HEIC image", b"heix": "a HEIC image", b"mif1": "a HEIF image", b"msf1": "a HEIF image"}
_BRANDS |= {b"hevc": "a HEIC image", b"avif": "an AVIF image", b"avis": "an AVIF image"}


class Flaw(Exception):
    """One file that cannot be used.

    Args:
        kind: what it is, the same for all files with this flaw: "a Git LFS pointer".
        message: what is wrong with the file, after its name.
        hint: what to do about it.
    """

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.kind, self.message, self.hint = kind, message, hint


class _Flawed(NamedTuple):
    name: str
    flaw: Flaw


def blocks(root: Path, files: Sequence[SourceFile], size: int, exact: bool) -> Iterator[Images]:
    """The images, uint8 `(n, 3, size, size)` at a time, in the order of `files`.

    Args:
        exact: refuse an image of another size instead of squeezing it.

    Raises:
        UserError: some files are no sound images; says how many, and names the first ones.
    """
    n = max(1, BLOCK_BYTES // (3 * size * size))
    pieces = [files[start : start + n] for start in range(0, len(files), n)]
    flawed: list[_Flawed] = []
    seen = until = 0
    for piece, (block, found) in zip(pieces, _decoded(root, pieces, size, exact), strict=False):
        seen += len(piece)
        if found and not flawed:
            until = seen + COUNTED
        flawed += found
        if not flawed:
            yield block
        elif seen >= until:
            break
    if flawed:
        raise _refusal(root, flawed, seen, len(files))


Decoded = tuple[Images, list[_Flawed]]


def _decoded(root: Path, pieces: list[Sequence[SourceFile]], size: int, exact: bool) -> Iterator[Decoded]:
    files, total = sum(map(len, pieces)), sum(file.size for piece in pieces for file in piece)
    if total < THREADS_FROM_BYTES * files:
        yield from (_decode_all(root, piece, size, exact) for piece in pieces)
        return
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        # Only so many ahead: results must not pile up in memory when the disk is slower than the decoding.
        ahead: deque[Future[Decoded]] = deque()
        for piece in pieces:
            ahead.append(pool.submit(_decode_all, root, piece, size, exact))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _decode_all(root: Path, files: Sequence[SourceFile], size: int, exact: bool) -> Decoded:
    block = np.zeros((len(files), 3, size, size), dtype=np.uint8)
    flawed = []
    for row, file in enumerate(files):
        try:
            block[row] = decode(root / file.name, size, exact=exact).transpose(2, 0, 1)
        except Flaw as flaw:
            flawed.append(_Flawed(file.name, flaw))
    return block, flawed


def decode(path: Path, size: int, *, exact: bool = False) -> Images:
    """One image file as uint8 `(size, size, 3)`.

    Raises:
        Flaw: it is damaged, or something else, or has more than 8 bits a channel, or another size where that is to be
            `exact`.
    """
    from PIL import Image  # not needed to know the names of the datasets

    flaw = None
    try:
        with Image.open(path) as file:
            if (flaw := _unfit(file.mode, file.size, size if exact else None)) is None:
                # Straight from a palette with transparency to RGB, the colours are the same, but Pillow warns.
                image = file.convert("RGBA") if file.mode == "P" and "transparency" in file.info else file
                return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # noqa: BLE001 - Pillow's many decoders raise whatever damaged bytes lead them to
        flaw = _found_instead(path, error)
    raise flaw


def _unfit(mode: str, found: tuple[int, int], size: int | None) -> Flaw | None:
    if mode[0] in "IF":
        # Pillow would clip to 255, which makes most of such an image white.
        return Flaw("a 16-bit or float image", f"has 16-bit or float pixels (mode {mode})", "convert it to 8 bits")
    if size is not None and found != (size, size):
        width, height = found
        return Flaw("of another size", f"is {width}x{height}, not {size}x{size}", _AGAIN)
    return None


def _found_instead(path: Path, error: Exception) -> Flaw:
    """What a file is that Pillow cannot read."""
    try:
        head = beginning(path)
    except OSError as unreadable:
        reason = f"cannot be read: {unreadable.strerror or unreadable}"
        return Flaw("a file that cannot be read", reason, "check it and its permissions")
    if found := placeholder_of(head):
        return Flaw(found[0], f"cannot be read as an image: it is {found[0]}", found[1])
    if name := _other_image(head):
        return Flaw(name, f"cannot be read as an image: it is {name}, whatever its name says", _CONVERT)
    if name := archive_of(head):
        return Flaw(name, f"cannot be read as an image: it is {name}", "unpack it")
    reason = " ".join(str(error).split()).replace(f"'{path}'", "").strip() or type(error).__name__
    return Flaw("a damaged image", f"cannot be read as an image: {reason[:200]}", _AGAIN)


def _other_image(head: bytes) -> str:
    """The kind of an image that other programs read; empty for none that is known."""
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "")
    if head.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return "a JPEG XL image"
    return "an SVG drawing" if b"<svg" in head.lower() else ""


def _refusal(root: Path, flawed: list[_Flawed], seen: int, total: int) -> UserError:
    first = flawed[0]
    if len(flawed) == 1:
        return UserError(f"{root / shown(first.name)} {first.flaw.message}", hint=first.flaw.hint)
    kinds: dict[str, list[_Flawed]] = {}
    for each in flawed:
        kinds.setdefault(each.flaw.kind, []).append(each)
    most = max(kinds.values(), key=len)
    part = root / first.name.partition("/")[0]
    looked_at = f"{seen:,}" if seen == total else f"the first {seen:,} (of {total:,})"
    which = "; ".join(_group(kind, found) for kind, found in kinds.items())
    reason = f"; the first: {first.flaw.message}" if first.flaw.kind == "a damaged image" else ""
    return UserError(
        f"{len(flawed):,} of {looked_at} images below {part} cannot be used: {which}{reason}", hint=most[0].flaw.hint
    )


def _group(kind: str, flawed: list[_Flawed]) -> str:
    names = ", ".join(shown(each.name.partition("/")[2]) for each in flawed[:NAMED])
    return f"{len(flawed):,} times {kind} ({names}{', ...' if len(flawed) > NAMED else ''})"
