"""Which file in a model's folder holds the float32 network that the model was made from."""

from collections.abc import Iterator
from pathlib import Path

from dgad_tk.artifacts.record import Artifact
from dgad_tk.common import UserError, sha256_file
from exporters.formats import read_record

MOST = 64
"""Files of a folder that are looked at, in the order of their names."""


def float32_of(path: Path, artifact: Artifact | None) -> Path | None:
    """The file beside `path` with the same network in float32; None if `path` is float32 itself, or none is there.

    The record decides, not a name: a file is taken whose own SHA-256 is the one that the record names as its source, or
    whose record names the same source. Programs (.pt, .pt2) are not looked at. A file that cannot be read is passed
    over, since nobody asked for it.
    """
    if artifact is None or not artifact.source_sha256 or artifact.precision == "float32":
        return None
    for other in _files(path):
        try:
            record = read_record(other)
            if record is None or record.precision != "float32" or record.classes != artifact.classes:
                continue
            if artifact.source_sha256 in (record.source_sha256, sha256_file(other)):
                return other
        except (UserError, OSError):  # somebody else's file, damaged or vanished
            continue
    return None


def _files(path: Path) -> Iterator[Path]:
    """ONNX files first, since these are what is deployed."""
    for suffix in (".onnx", ".safetensors"):
        found = sorted(each for each in path.parent.glob(f"*{suffix}") if each.is_file() and each != path)
        yield from found[:MOST]
