"""Model files, out and in. A new format is a file with save and load, and a row in EXPORTERS."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dgad_tk.artifact import Artifact
from dgad_tk.checkpoint import load_model, read_weights
from dgad_tk.common import GateError, UserError, lookup, nearest, sha256_file
from dgad_tk.interface import AS_IS, Interface
from dgad_tk.predictor import Images, Predictor, load_safetensors
from exporters.divergence import Layers, first_divergence, onnx_layers, program_layers, script_layers
from exporters.from_onnx import NoGradients as NoGradients
from exporters.from_onnx import load_onnx
from exporters.quantize import save_onnx_int8
from exporters.read_onnx import read_onnx_record
from exporters.to_fp16 import FAILURES, WARNINGS, save_onnx_fp16
from exporters.to_onnx import save_onnx
from exporters.to_torch_export import load_torch_export, save_torch_export
from exporters.to_torchscript import load_torchscript, read_archived_record, save_torchscript
from exporters.verify import EXACT, HALF, QUANTISED, Parity, Probes, Tolerance, make_probes, verify

Load = Callable[[Path, tuple[int, int, int] | None, Interface], Predictor]


@dataclass(frozen=True)
class Format:
    """A way to write a model.

    Attributes:
        filename: that its files get unless told otherwise; its last suffix is how they are opened.
        save: (model in eval mode, record, path, **options); returns what there is to report of it, or None.
        record: the record in a file of this format, read without running anything; None where there is none.
        tolerance: that its files are held to.
        layers: how they are run layer by layer, to find the one that fails.
        options: names of the options that `save` takes.
        note: said when it is written.
        wants_probes: `save` is given the images that exports are compared on, as `probes`.
        not_judged: what a comparison on a CPU says nothing of.
    """

    filename: str
    save: Callable[..., Mapping[str, Any] | None]
    record: Callable[[Path], Artifact | None]
    tolerance: Tolerance
    layers: Layers
    options: tuple[str, ...] = ()
    note: str = ""
    wants_probes: bool = False
    not_judged: str = ""

    @property
    def suffix(self) -> str:
        return Path(self.filename).suffix


INT8_OPTIONS = ("images", "samples", "method", "calibrate_on", "exclude", "search_exclusions", "reduce_range")

EXPORTERS: dict[str, Format] = {
    "onnx": Format("student.onnx", save_onnx, read_onnx_record, EXACT, onnx_layers, ("opset",)),
    "onnx-fp16": Format(
        "student.fp16.onnx",
        save_onnx_fp16,
        read_onnx_record,
        HALF,
        onnx_layers,
        ("opset",),
        note="half the size; a CPU computes float16 in float32, so that only GPUs and NPUs gain speed",
        wants_probes=True,
        not_judged="arithmetic in float16, which this CPU does in float32: weights and the range of values were judged",
    ),
    "onnx-int8": Format(
        "student.int8.onnx",
        save_onnx_int8,
        read_onnx_record,
        QUANTISED,
        onnx_layers,
        ("opset", *INT8_OPTIONS),
        note="answers differ from the source's on some images; `dgad attack` says what that costs",
    ),
    "torchscript": Format(
        "student.pt",
        save_torchscript,
        read_archived_record,
        EXACT,
        script_layers,
        note="PyTorch calls TorchScript deprecated; prefer onnx or torch-export for new deployments",
    ),
    "torch-export": Format("student.pt2", save_torch_export, read_archived_record, EXACT, program_layers),
}

LOADERS: dict[str, Load] = {
    ".onnx": load_onnx,
    ".pt": load_torchscript,
    ".pt2": load_torch_export,
    ".safetensors": load_safetensors,
}

DIVERGENCE_IMAGES = 8
"""On so many images a failed export and its source are run layer by layer."""


class ParityError(GateError):
    """An exported file does not compute what its source computes. Nothing was written under the final name."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and verified.

    Attributes:
        path: of the file.
        parity: what the comparison with its source found.
        findings: what its format has to report besides, such as how it was calibrated.
        warnings: what to doubt, though it passed.
    """

    path: Path
    parity: Parity
    findings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Source:
    """Weights to be exported, opened once for any number of formats.

    Args:
        path: a .safetensors file of `dgad train`.
        held_out: float32 `(N, C, H, W)` in [0, 1] to compare exports on, at least 10; None uses uniform noise.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, path: Path, held_out: Images | None = None) -> None:
        self.path = path
        self.held_out = held_out
        self.model, artifact = load_model(path)
        self.artifact = artifact.model_copy(update={"source_sha256": sha256_file(path)})

    @cached_property
    def probes(self) -> Probes:
        """What exports are compared on, and what the source answers to it."""
        return make_probes(self.model, self.artifact, self.held_out)


def load(path: Path, input_shape: tuple[int, int, int] | None = None, interface: Interface = AS_IS) -> Predictor:
    """Open a model file by its suffix.

    Args:
        input_shape: (C, H, W) for a file that does not say.
        interface: what has to be done to images before a file from elsewhere takes them.

    Raises:
        UserError: missing, of unknown suffix, damaged, or not an image classifier.
    """
    _check_path(path)
    return LOADERS[path.suffix](path, input_shape, interface)


def read_record(path: Path) -> Artifact | None:
    """The metadata record in a model file, read without running anything; None where there is none.

    Raises:
        UserError: missing, of unknown suffix or damaged.
    """
    _check_path(path)
    formats = {each.suffix: each for each in EXPORTERS.values()}
    return formats[path.suffix].record(path) if path.suffix in formats else read_weights(path)[1]


def _check_path(path: Path) -> None:
    if not path.exists():
        raise UserError(f"no such file: '{path}'", hint="`dgad export` writes student.onnx into the current folder")
    if not path.is_file():
        raise UserError(f"'{path}' is not a file", hint="name the model file itself")
    if path.suffix not in LOADERS:
        raise UserError(
            f"cannot tell what '{path}' is by its suffix '{path.suffix}'",
            hint="expected one of " + ", ".join(sorted(LOADERS)),
        )


def export(
    source: Path | Source,
    format: str,
    output: Path,
    *,
    held_out: Images | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Exported:
    """Write the weights `source` as `format` to `output`, verified.

    The file is written aside, opened by its own runtime and compared with the source at several batch sizes, on clean
    images, on PGD images and on some that no camera takes. Only then does it take its name.

    Args:
        source: a .safetensors file of `dgad train`, or the `Source` that several exports share.
        format: row of EXPORTERS.
        output: where to; an older export of ours is replaced.
        held_out: as for `Source`, where `source` is a path.
        overwrite: replace a file that is not ours too.
        options: of the format, such as `opset`.

    Raises:
        UserError: unknown format or option, unreadable source, or an `output` that is somebody else's.
        ParityError: the file does not compute the same; it is kept as `output` with `.failed` behind its name.
    """
    chosen = lookup(EXPORTERS, format, "format")
    for option in options:
        if option not in chosen.options:
            raise UserError(f"format '{format}' has no option '{option}'", hint=nearest(option, chosen.options))
    _check_output(output, chosen, overwrite)
    if isinstance(source, Path):
        source = Source(source, held_out)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-unverified-", dir=output.parent) as folder:
        aside = Path(folder) / output.name
        if chosen.wants_probes:
            options["probes"] = source.probes.images
        findings = dict(chosen.save(source.model, source.artifact, aside, **options) or {})
        broken, warnings = findings.pop(FAILURES, []), findings.pop(WARNINGS, [])
        written = load(aside)
        parity = verify(source.probes, written, chosen.tolerance)
        if chosen.not_judged and "CPUExecutionProvider" in written.runtime:
            parity = replace(parity, not_judged=chosen.not_judged)
        if parity.passed and not broken:
            _move(aside, output)
            return Exported(output, parity, findings, tuple(warnings))
        where = first_divergence(
            source.model,
            written,
            source.probes.images[parity.worst][:DIVERGENCE_IMAGES],
            chosen.layers,
            chosen.tolerance.relative,
        )
        failed = output.with_name(f"{output.name}.failed")
        _move(aside, failed)
    reasons = [*broken, *parity.failures]
    if where and not parity.passed:
        reasons.append(str(where))
    raise ParityError(
        f"{format} export of '{source.path}' differs from its source: {'; '.join(reasons)}; see '{failed}'"
    )


def _move(aside: Path, target: Path) -> None:
    """Give a file its name, after the files that it refers to have theirs."""
    for other in aside.parent.iterdir():
        if other != aside:
            other.replace(target.with_name(other.name))
    aside.replace(target)


def _check_output(output: Path, chosen: Format, overwrite: bool) -> None:
    if output.suffix != chosen.suffix:
        raise UserError(
            f"--output '{output}' must end in {chosen.suffix}",
            hint="the suffix is how the file is opened later",
        )
    if output.is_dir():
        raise UserError(f"--output '{output}' is a folder", hint=f"name a file, such as {output}/{chosen.filename}")
    if not output.exists() or overwrite:
        return
    try:
        ours = chosen.record(output) is not None
    except UserError:
        ours = False
    if not ours:
        raise UserError(f"'{output}' exists and was not written by dgad", hint="--overwrite replaces it")
