"""Files that are no sound images: each is a line, many are counted, whatever the decoder raises."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dgad_tk.common import UserError
from dgad_tk.data import decoding, load_dataset

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567\n"
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight images of two classes in train/ and in test/."""
    monkeypatch.setenv("DGAD_CACHE", str(tmp_path / "cache"))
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for image in range(8):
                pixels = np.random.default_rng(image).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / name / f"{image}.png")
    return tmp_path / "photos"


def refusal(root: Path) -> UserError:
    with pytest.raises(UserError) as error:
        load_dataset("imagefolder", data_dir=root, image_size=8)
    assert "\n" not in str(error.value)
    assert "delete" not in str(error.value)
    return error.value


@pytest.mark.parametrize("threads_from", [0, 10**9])
@pytest.mark.parametrize("block_bytes", [1, 2**22])
def test_pointers_are_counted(root: Path, monkeypatch: pytest.MonkeyPatch, threads_from: int, block_bytes: int) -> None:
    monkeypatch.setattr(decoding, "THREADS_FROM_BYTES", threads_from)
    monkeypatch.setattr(decoding, "BLOCK_BYTES", block_bytes)
    for path in (root / "train").glob("*/[1-7].png"):
        path.write_bytes(POINTER)
    error = refusal(root)
    assert error.message == (
        f"14 of 16 images below {root / 'train'} cannot be used: 14 times a Git LFS pointer "
        "(a/1.png, a/2.png, a/3.png, ...)"
    )
    assert "git lfs pull" in error.hint


def test_different_flaws_are_told_apart_and_the_most_frequent_has_the_hint(root: Path) -> None:
    (root / "test" / "a" / "0.png").write_bytes(PAGE)
    whole = (root / "test" / "a" / "1.png").read_bytes()
    for image in range(3):
        (root / "test" / "b" / f"{image}.png").write_bytes(whole[: 60 + image])
    error = refusal(root)
    assert "4 of 16 images below" in error.message
    assert "1 times an HTML page (a/0.png); 3 times a damaged image (b/0.png, b/1.png, b/2.png)" in error.message
    assert "copy it again" in error.hint


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (POINTER, "a Git LFS pointer"),
        (PAGE, "an HTML page"),
        (b"", "an empty file"),
        (bytes(4000), "a file of zeros"),
        (b"/annex/objects/SHA256E-s31390--f50d.png", "a git-annex pointer"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "a HEIC image"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    ],
)
def test_what_is_there_instead_of_an_image_is_named(root: Path, content: bytes, what: str) -> None:
    (root / "train" / "b" / "5.png").write_bytes(content)
    error = refusal(root)
    assert error.message.startswith(f"{root / 'train' / 'b' / '5.png'} cannot be read as an image: it is {what}")
    assert error.hint


@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack requires a buffer of 4 bytes"),
        zlib.error("Error -3 while decompressing data"),
        IndexError("index out of range"),
        KeyError(7),
        TypeError("'NoneType' object is not subscriptable"),
        AttributeError("no attribute 'tile'"),
        NotImplementedError("Pixel format not implemented"),
        AssertionError(),
        MemoryError(),
        RecursionError("maximum recursion depth exceeded"),
        ZeroDivisionError("division by zero"),
        OverflowError("cannot fit 'int' into an index-sized integer"),
        Image.DecompressionBombError("Image size exceeds limit"),
        OSError("image file is truncated"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_decoder_raises_is_a_line_about_that_file(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    load = PngImagePlugin.PngImageFile.load
    marked = root / "train" / "a" / "3.png"

    def failing(image: PngImagePlugin.PngImageFile) -> object:
        if Path(str(image.filename)) == marked:
            raise error
        return load(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", failing)
    message = refusal(root).message
    assert message.startswith(f"{marked} cannot be read as an image: ")
    assert (" ".join(str(error).split()) or type(error).__name__) in message


def test_counting_ends_some_way_behind_the_first_bad_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "COUNTED", 5)
    monkeypatch.setattr(decoding, "BLOCK_BYTES", 1)
    for path in (root / "train").glob("*/[2-7].png"):
        path.write_bytes(POINTER)
    assert "6 of the first 8 (of 16) images below" in refusal(root).message


def test_a_mistake_of_ours_keeps_its_traceback(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_decode_all", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_dataset("imagefolder", data_dir=root, image_size=8)
