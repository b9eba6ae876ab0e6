"""Pointers, pages and empty files are told from what they stand for."""

from pathlib import Path

import pytest

from dgad_tk.common import UserError
from dgad_tk.first_bytes import archive_of, placeholder, refuse_placeholder

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
    found = placeholder(tmp_path / "a")
    assert found is not None
    assert found[0] == "an HTML page"


@pytest.mark.parametrize(
    "head",
    [b"\x08\x08\x12\x07pytorch", b"PK\x03\x04", b"\x80\x02", b"\x89PNG\r\n", b'<?xml version="1.0"?><svg>', b"P5 8 8"],
)
def test_files_that_may_be_what_they_say(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(head)
    assert placeholder(tmp_path / "a") is None


def test_archives() -> None:
    assert archive_of(b"PK\x03\x04....") == "a zip archive"
    assert archive_of(b"\x08\x08") == ""
