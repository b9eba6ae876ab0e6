"""Model files, out and in. A new format is a file with save and load, and a row in EXPORTERS."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgad_tk.artifact import Artifact
from dgad_tk.checkpoint import load_model
from dgad_tk.common import GateError, UserError, lookup, nearest, sha256_file
from dgad_tk.config import ThreatModel
from dgad_tk.predictor import Images, Predictor, load_safetensors
from exporters.from_onnx import load_onnx
from exporters.read_onnx import read_onnx_record
from exporters.to_onnx import save_onnx
from exporters.to_torchscript import load_torchscript, read_torchscript_record, save_torchscript
from exporters.verify import Parity, verify

Load = Callable[[Path, tuple[int, int, int] | None], Predictor]


@dataclass(frozen=True)
class Format:
    """A way to write a model.

    Attributes:
        suffix: of its files.
        save: (model in eval mode, record, path, **options).
        record: the record in a file of this format, read without running anything; None where there is none.
        options: names of the options that `save` takes.
        note: said when it is written.
    """

    suffix: str
    save: Callable[..., None]
    record: Callable[[Path], Artifact | None]
    options: tuple[str, ...] = ()
    note: str = ""


EXPORTERS: dict[str, Format] = {
    "onnx": Format(".onnx", save_onnx, read_onnx_record, ("opset",)),
    "torchscript": Format(
        ".pt",
        save_torchscript,
        read_torchscript_record,
        note="PyTorch calls TorchScript deprecated; prefer onnx for new deployments",
    ),
}

LOADERS: dict[str, Load] = {
    ".onnx": load_onnx,
    ".pt": load_torchscript,
    ".safetensors": load_safetensors,
}


class ParityError(GateError):
    """An exported file does not compute what its source computes. Nothing was written under the final name."""


def load(path: Path, input_shape: tuple[int, int, int] | None = None) -> Predictor:
    """Open a model file by its suffix.

    Args:
        input_shape: (C, H, W) for a file that does not say.

    Raises:
        UserError: missing, of unknown suffix, damaged, or not an image classifier.
    """
    if not path.exists():
        raise UserError(f"no such file: '{path}'", hint="`dgad export` writes student.onnx into the current folder")
    if not path.is_file():
        raise UserError(f"'{path}' is not a file", hint="name the model file itself")
    if path.suffix not in LOADERS:
        raise UserError(
            f"cannot tell what '{path}' is by its suffix '{path.suffix}'",
            hint="expected one of " + ", ".join(sorted(LOADERS)),
        )
    return LOADERS[path.suffix](path, input_shape)


def export(
    source: Path,
    format: str,
    output: Path,
    *,
    images: Images | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Parity:
    """Write the weights `source` as `format` to `output`, verified.

    The file is written aside, opened by its own runtime and compared with the source at several batch sizes, on clean
    and on PGD images. Only then does it take its name.

    Args:
        source: a .safetensors file of `dgad train`.
        format: row of EXPORTERS.
        output: where to; an older export of ours is replaced.
        images: float32 `(N, C, H, W)` in [0, 1] to compare on, at least 10; None uses uniform noise.
        overwrite: replace a file that is not ours too.
        options: of the format, such as `opset`.

    Raises:
        UserError: unknown format or option, unreadable source, or an `output` that is somebody else's.
        ParityError: the file does not compute the same; nothing was written.
    """
    chosen = lookup(EXPORTERS, format, "format")
    for option in options:
        if option not in chosen.options:
            raise UserError(f"format '{format}' has no option '{option}'", hint=nearest(option, chosen.options))
    _check_output(output, chosen, overwrite)
    model, artifact = load_model(source)
    artifact = artifact.model_copy(update={"source_sha256": sha256_file(source)})
    if images is None:
        images = np.random.default_rng(0).random((16, *artifact.input_shape), dtype=np.float32)
    aside = output.with_name(f".{output.stem}-{os.getpid()}-unverified{chosen.suffix}")
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        chosen.save(model, artifact, aside, **options)
        parity = verify(model, load(aside), images, threat_of(artifact))
        if not parity.passed:
            raise ParityError(f"{format} export of '{source}' differs from its source: {parity}")
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)
    return parity


def threat_of(artifact: Artifact) -> ThreatModel:
    """What the model was trained to resist; 8/255 where it was not."""
    known = {key: value for key, value in artifact.threat.items() if key in ThreatModel.model_fields}
    return ThreatModel.model_validate(known) if known else ThreatModel.of("linf", 8 / 255)


def _check_output(output: Path, chosen: Format, overwrite: bool) -> None:
    if output.suffix != chosen.suffix:
        raise UserError(
            f"--output '{output}' must end in {chosen.suffix}",
            hint="the suffix is how the file is opened later",
        )
    if output.is_dir():
        raise UserError(
            f"--output '{output}' is a folder", hint=f"name a file, such as {output}/student{chosen.suffix}"
        )
    if not output.exists() or overwrite:
        return
    try:
        ours = chosen.record(output) is not None
    except UserError:
        ours = False
    if not ours:
        raise UserError(f"'{output}' exists and was not written by dgad", hint="--overwrite replaces it")
