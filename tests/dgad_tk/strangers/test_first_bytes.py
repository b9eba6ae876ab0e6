"""Pointers, pages and empty files are told from what they stand for."""

from pathlib import Path

import pytest

from dgad_tk.common import UserError
from dgad_tk.strangers.first_bytes import archive_of, beginning, is_pickle, placeholder, refuse_placeholder, text_of

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567\n"

PLACEHOLDERS = {
    "a Git LFS pointer": LFS,
    "a git-annex pointer": b"/annex/objects/SHA256E-s31390--" + b"f5" * 32 + b".jpg",
    "an HTML page": b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
    "an XML document": b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
    "a server's error message": b'{"error":"Access to this model is restricted"}',
    "an empty file": b"",
    "a file of zeros": b"\0" * 2000,
}


@pytest.mark.parametrize("what", PLACEHOLDERS)
def test_what_stands_in_the_place_of_a_file_is_named(what: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(PLACEHOLDERS[what])

    with pytest.raises(UserError, match=f"is {what}, not an ONNX model") as error:
        refuse_placeholder(path, "an ONNX model")
    assert error.value.hint


@pytest.mark.parametrize(
    "page", [b"\xef\xbb\xbf\r\n <HTML lang=de>", b"<!-- saved from -->\n<html>", b"\n\n<!doctype HTML>"]
)
def test_pages_as_servers_write_them(page: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(page)
    found = placeholder(beginning(tmp_path / "a"))
    assert found is not None
    assert found[0] == "an HTML page"


@pytest.mark.parametrize(
    "head",
    [b"\x08\x08\x12\x07pytorch", b"PK\x03\x04", b"\x80\x02", b"\x89PNG\r\n", b'<?xml version="1.0"?><svg>', b"P5 8 8"],
)
def test_files_that_may_be_what_they_say(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(head)
    assert placeholder(beginning(tmp_path / "a")) is None


def test_archives() -> None:
    assert archive_of(b"PK\x03\x04....") == "a zip archive"
    assert archive_of(b"w.pth".ljust(257, b"\0") + b"ustar") == "a tar archive"
    assert archive_of(b"\x08\x08") == ""


def test_text_is_told_from_binary_files() -> None:
    assert text_of(b"  Entry not\nfound\n") == "Entry not found"
    assert text_of("Zugriff für Gäste gesperrt".encode()) == "Zugriff für Gäste gesperrt"
    assert text_of(("x" + "ä" * 300).encode()[:512]).startswith("xä")  # what was looked at ends within a letter
    assert len(text_of(b"word " * 100)) <= 60
    for binary in (
        b"\x08\x08\x12\x07pytorch",
        b"PK\x03\x04",
        b"\x80\x02}q",
        b"\x89PNG\r\n",
        bytes(8) + b"{}",
        b"\xff\xfea\0",
    ):
        assert text_of(binary) == ""


def test_pickles_are_told_from_the_length_of_a_header() -> None:
    assert is_pickle(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    assert is_pickle(b"\x80\x04\x95\x0a\0\0\0\0\0\0\0(K\1.")
    assert not is_pickle(b"\x80\x02\0\0\0\0\0\0{}")
    assert not is_pickle(b"PK\x03\x04")
