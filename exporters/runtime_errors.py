"""What ONNX Runtime says when it cannot load or run a file, in one line that a user can do something with."""

import re
from pathlib import Path

MOST = 200
"""Characters of a reason."""

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(r"/onnxruntime_src/\S+:\d+ (?:[^()]*\((?:[^()]|\([^()]*\))*\) )?")
"""A file of its source, a line, and often the signature of the function there."""


def runtime_reason(error: Exception, path: Path | None = None) -> str:
    """The text of an exception, without code, places in its source and `path`, which it names over and over."""
    text = " ".join(str(error).split())
    if path is not None:
        text = text.replace(str(path), "it")
    text = _SOURCE.sub("", _CODE.sub("", text)).strip()
    return (text if len(text) <= MOST else f"{text[:MOST]}…") or type(error).__name__
