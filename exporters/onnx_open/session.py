"""ONNX Runtime runs a file on images, in batches of the size that it takes; its errors become one line each."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from dgad_tk.artifacts.predictor import Images
from dgad_tk.common import UserError
from exporters.onnx_open.image_input import ImageInput
from exporters.onnx_read.runtime_memory import session_options

OTHER_SIZE = "is it a classifier of images of this size? --image-size sets that of an image folder"
BLANK = 3
"""Images to try a file on that takes any number. Few graphs are traced with so many and keep that as a constant."""
LONGEST_REASON = 200
"""Characters of what ONNX Runtime says."""

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(r"/onnxruntime_src/\S+:\d+ (?:[^()]*\((?:[^()]|\([^()]*\))*\) )?")
"""A file of its source, a line, and often the signature of the function there."""


class Runtime:
    """A session run on images `(N, C, H, W)` in [0, 1], in the batches that it takes."""

    def __init__(self, session: onnxruntime.InferenceSession, image: ImageInput, where: str) -> None:
        self.session, self.image, self.feed, self.where = session, image, image.feed(), where
        self.outputs = [entry.name for entry in session.get_outputs()]

    def blank_answers(self) -> dict[str, Any]:
        """What every output gives for blank images.

        Raises:
            UserError: the file fails on them.
        """
        blank = np.zeros((self.image.batch or BLANK, *self.image.shape), dtype=np.float32)
        return dict(zip(self.outputs, self._run(self.feed.array(blank), self.outputs), strict=True))

    def rows(self, images: Images, output: str) -> NDArray[Any]:
        """A row of `output` for each image, as the file gives it.

        Raises:
            UserError: the file fails on them.
        """
        fed, size = self.feed.array(images), self.image.batch
        if size is None:
            return self._row(fed, output)
        if lacking := -len(images) % size:
            fed = np.concatenate([fed, np.repeat(fed[-1:], lacking, axis=0)])
        parts = [self._row(fed[start : start + size], output) for start in range(0, len(fed), size)]
        return np.concatenate(parts)[: len(images)]

    def _row(self, fed: NDArray[Any], output: str) -> NDArray[Any]:
        (answer,) = self._run(fed, [output])
        return np.asarray(answer).reshape(len(fed), -1)

    def _run(self, fed: NDArray[Any], outputs: list[str]) -> list[Any]:
        given = fed if self.image.has_batch_axis else fed[0]
        try:
            answers: list[Any] = self.session.run(outputs, {self.image.name: given})
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
            raise UserError(
                f"'{self.where}' does not run on images of shape {self.image.shape}: {runtime_reason(error)}",
                hint=OTHER_SIZE,
            ) from None
        return answers


def tried(
    session: onnxruntime.InferenceSession, ways: Sequence[ImageInput], where: str
) -> tuple[Runtime, dict[str, Any]]:
    """A session, its input read in the first of `ways` in which it answers blank images; and its answers.

    Raises:
        UserError: it fails in every way; says why it fails in the first.
    """
    failed: UserError | None = None
    for image in ways:
        # An input that is declared for any batch size does not make a graph that is.
        for batch in (image.batch,) if image.batch is not None else (None, 1):
            runtime = Runtime(session, replace(image, batch=batch), where)
            try:
                return runtime, runtime.blank_answers()
            except UserError as error:
                failed = failed or error
    assert failed is not None
    raise failed


def open_session(path: Path, graph: bytes | None = None) -> onnxruntime.InferenceSession:
    """A session of the file at `path`, on a GPU where there is one.

    Args:
        graph: an ONNX model that is run in place of the file.

    Raises:
        UserError: ONNX Runtime cannot load it.
    """
    options = session_options(threads=torch.get_num_threads(), bounded=True)
    # Between its calls torch computes gradients; a pool that spins while it waits takes the cores away from that.
    # Within a call spinning saves a small network a tenth.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    cuda = torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    # TF32 moves logits by 1e-3, more than a verdict may depend on.
    providers = [("CUDAExecutionProvider", {"use_tf32": "0"})] if cuda else []
    try:
        loaded = str(path) if graph is None else graph
        return onnxruntime.InferenceSession(loaded, options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
        raise UserError(
            f"ONNX Runtime cannot load '{path}': {runtime_reason(error, path)}",
            hint=f"export it again, with operators that ONNX Runtime {onnxruntime.__version__} has",
        ) from None


def runtime_reason(error: Exception, path: Path | None = None) -> str:
    """What ONNX Runtime says, in one line: without its code, places in its source, and `path`, which it repeats."""
    text = " ".join(str(error).split())
    if path is not None:
        text = text.replace(str(path), "it")
    text = _SOURCE.sub("", _CODE.sub("", text)).strip()
    return (text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…") or type(error).__name__
