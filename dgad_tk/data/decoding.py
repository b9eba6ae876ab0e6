"""Decodes image files into arrays of one size. Files that cannot be used are counted and named by what they are."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dgad_tk.common import UserError, reason_of
from dgad_tk.cores import usable_cores
from dgad_tk.data.endings import first_names
from dgad_tk.data.images.request import MODES, Request
from dgad_tk.data.images.resize import RESIZES
from dgad_tk.data.spec import Pixels
from dgad_tk.strangers.first_bytes import archive_of, beginning, placeholder
from dgad_tk.strangers.names import shown

BLOCK_BYTES = 2**22
THREADS_FROM_BYTES = 4096
"""File size from which threads pay off. Two threads are 2.0 times as fast as one at 90 KB per file, 1.4 times at 7 KB,
and 0.7 times at CIFAR's 1 KB, where most of the work needs the interpreter's lock."""
COUNTED = 10_000
"""How many more images are decoded after a bad one, so that the message can count the others."""

_AGAIN = "copy it again, or take it out of the folder"
_CONVERT = "convert it to .png or .jpg"
_BRANDS = {b"heic": "a HEIC image", b"heix": "a HEIC image", b"mif1": "a HEIF image", b"msf1": "a HEIF image"}
_BRANDS |= {b"hevc": "a HEIC image", b"avif": "an AVIF image", b"avis": "an AVIF image"}

SAMPLED = 25
"""Pictures whose sizes are looked at, to say how much they are stretched."""


@dataclass(frozen=True)
class Flaw:
    """Why a file cannot be used.

    Attributes:
        kind: the same for all files with this flaw, such as "a Git LFS pointer".
        message: what is wrong with this file; follows its name.
        hint: what to do about it.
    """

    kind: str
    message: str
    hint: str


_Block = tuple[Pixels, dict[str, Flaw]]
"""The images of some files, and the flaws of those that cannot be used, by file name."""


def blocks(root: Path, files: Sequence[str], request: Request, exact: bool) -> Iterator[Pixels]:
    """The images in the order of `files`, in blocks of uint8 `(n, C, H, W)`.

    Args:
        request: C, H and W, and how pictures are brought there.
        exact: refuse an image of another size instead of resizing it.

    Raises:
        UserError: some files cannot be used. The message says how many and names the first ones.
    """
    flawed: dict[str, Flaw] = {}
    seen = until = 0
    for block, found in _decoded(root, files, request, exact):
        seen += len(block)
        if found and not flawed:
            until = seen + COUNTED
        flawed |= found
        if not flawed:
            yield block
        elif seen >= until:
            break
    if flawed:
        raise _refusal(root, flawed, f"{seen:,}" if seen == len(files) else f"the first {seen:,} (of {len(files):,})")


def _decoded(root: Path, files: Sequence[str], request: Request, exact: bool) -> Iterator[_Block]:
    height, width = request.size
    n = max(1, BLOCK_BYTES // (request.channels * height * width))
    decode_some = partial(_decode_all, root, request=request, exact=exact)
    pieces = (files[start : start + n] for start in range(0, len(files), n))
    threads = 1
    with suppress(OSError):  # the decoder says what is wrong with the file
        if (root / files[len(files) // 2]).stat().st_size >= THREADS_FROM_BYTES:
            threads = min(8, usable_cores())
    with ThreadPoolExecutor(threads) as pool:
        # A bounded number ahead, so that results do not pile up in memory when the disk is slow.
        ahead: deque[Future[_Block]] = deque()
        for piece in pieces:
            ahead.append(pool.submit(decode_some, piece))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _decode_all(root: Path, files: Sequence[str], request: Request, exact: bool) -> _Block:
    block = np.zeros((len(files), request.channels, *request.size), dtype=np.uint8)
    flawed = {}
    for row, name in enumerate(files):
        found = decode(root / name, request, exact=exact)
        if isinstance(found, Flaw):
            flawed[name] = found
        else:
            block[row] = found.transpose(2, 0, 1) if found.ndim == 3 else found
    return block, flawed


def decode(path: Path, request: Request, *, exact: bool = False) -> Pixels | Flaw:
    """One image file as uint8 `(H, W, 3)`, or `(H, W)` where grey is wanted.

    Returns:
        A Flaw where the file is damaged, is not an image, has more than 8 bits per channel or, with `exact`, has
        another size.
    """
    from PIL import Image  # not needed to know the names of the datasets

    try:
        with Image.open(path) as file:
            if file.mode[0] in "IF":  # Pillow would clip to 255, which makes most of the image white
                message = f"has 16-bit or float pixels (mode {file.mode})"
                return Flaw("a 16-bit or float image", message, "convert it to 8 bits")
            height, width = request.size
            if exact and file.size != (width, height):
                return Flaw("of another size", f"is {file.width}x{file.height}, not {width}x{height}", _AGAIN)
            # By way of RGBA, since Pillow warns when it converts a palette with transparency to RGB.
            image = file.convert("RGBA") if file.mode == "P" and "transparency" in file.info else file
            return np.asarray(RESIZES[request.resize].bring(image.convert(MODES[request.channels]), request.size))
    except Exception as error:  # noqa: BLE001 - Pillow's many decoders raise whatever damaged bytes lead them to
        return _found_instead(path, error)


def stretch_of(root: Path, files: Sequence[str], request: Request) -> float:
    """`Request.stretch` of the middle one of some pictures, evenly spaced in `files`. Only their headers are read."""
    from PIL import Image

    found = [1.0]
    for name in files[:: max(1, len(files) // SAMPLED)]:
        with suppress(OSError, ValueError), Image.open(root / name) as file:
            found.append(request.stretch(file.height, file.width))
    return float(np.median(found[1:] or found))


def _found_instead(path: Path, error: Exception) -> Flaw:
    """The flaw of a file that Pillow cannot read."""
    try:
        head = beginning(path)
    except OSError as unreadable:
        reason = f"cannot be read: {unreadable.strerror or unreadable}"
        return Flaw("a file that cannot be read", reason, "check it and its permissions")
    cannot = "cannot be read as an image: "
    if found := placeholder(head):
        return Flaw(found[0], f"{cannot}it is {found[0]}", found[1])
    if name := _other_image(head):
        return Flaw(name, f"{cannot}it is {name}, whatever its name says", _CONVERT)
    if name := archive_of(head):
        return Flaw(name, f"{cannot}it is {name}", "unpack it")
    reason = reason_of(error).replace(f"'{path}'", "").strip()
    return Flaw("a damaged image", cannot + (reason or type(error).__name__), _AGAIN)


def _other_image(head: bytes) -> str:
    """The kind of an image that other programs can read; else empty."""
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "")
    if head.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return "a JPEG XL image"
    return "an SVG drawing" if b"<svg" in head.lower() else ""


def _refusal(root: Path, flawed: dict[str, Flaw], looked_at: str) -> UserError:
    """One error for all flawed images, with the hint of the most frequent flaw."""
    first, flaw = next(iter(flawed.items()))
    if len(flawed) == 1:
        return UserError(f"{root / shown(first)} {flaw.message}", hint=flaw.hint)
    kinds: dict[str, list[str]] = {}
    for name, each in flawed.items():
        kinds.setdefault(each.kind, []).append(name)
    most = max(kinds.values(), key=len)
    which = "; ".join(
        f"{len(names):,} times {kind} ({first_names(name.partition('/')[2] for name in names)})"
        for kind, names in kinds.items()
    )
    reason = f"; the first: {flaw.message}" if flaw.kind == "a damaged image" else ""
    return UserError(
        f"{len(flawed):,} of {looked_at} images below {root / first.partition('/')[0]} cannot be used: {which}{reason}",
        hint=flawed[most[0]].hint,
    )
