"""Writing a model file: it is written aside, compared with its source, and only then gets its name."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from dgad_tk.artifacts.predictor import Images
from dgad_tk.common import GateError, UserError, lookup, nearest, reason_of, sha256_file
from exporters.formats import EXPORTERS, Format, load
from exporters.onnx_student.weights import open_weights
from exporters.onnx_write.float32 import Report
from exporters.parity.divergence import first_divergence
from exporters.parity.verify import Parity, SourceAnswers, ask_source, verify

DIVERGENCE_IMAGES = 8
"""Images on which a failed export and its source are run layer by layer."""


class ParityError(GateError):
    """An exported file does not compute what its source computes. Nothing was written under the final name."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, what the comparison with its source found, and what its format says besides."""

    path: Path
    parity: Parity
    report: Report


class Source:
    """Weights to be exported, opened once for any number of formats.

    Args:
        path: a .safetensors file of `dgad train`.
        held_out: images `(N, C, H, W)` in [0, 1] to compare exports on, at least 10; None uses uniform noise.
        trust: run the source code that the record of a user's own network names.
        network: a user's own network where its record does not find it, as for `load_model`.

    Attributes:
        notes: what to know about the source, a sentence each.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(
        self,
        path: Path,
        held_out: Images | None = None,
        *,
        trust: bool = False,
        network: str | nn.Module | None = None,
    ) -> None:
        self.path = path
        self.held_out = held_out
        self.notes: list[str] = []
        self.model, artifact = open_weights(path, trust=trust, network=network, on_message=self.notes.append)
        self.artifact = artifact.model_copy(update={"source_sha256": sha256_file(path)})

    @cached_property
    def probes(self) -> SourceAnswers:
        """What exports are compared on, and what the source answers to it."""
        return ask_source(self.model, self.artifact, self.held_out)


def export(source: Path | Source, format: str, output: Path, *, overwrite: bool = False, **options: Any) -> Exported:
    """Write the weights `source` as `format` to `output`, verified.

    The file is written aside, opened by its own runtime and compared with the source at several batch sizes, on clean
    images, on PGD images, on noise, on black and on white. Only then does it get its name.

    Args:
        source: a .safetensors file of `dgad train`, or the `Source` that several exports share.
        format: row of EXPORTERS.
        output: path to write to; an older export of dgad is replaced.
        overwrite: replace any other file too.
        options: of the format, such as `opset`.

    Raises:
        UserError: unknown format or option, unreadable source, or an `output` that dgad did not write.
        ParityError: the file does not compute the same; it is kept as `output` with `.failed` after its name.
    """
    chosen = lookup(EXPORTERS, format, "format")
    for option in options:
        if option not in chosen.options:
            raise UserError(f"format '{format}' has no option '{option}'", hint=nearest(option, chosen.options))
    _check_output(output, chosen, overwrite)
    if isinstance(source, Path):
        source = Source(source)
    if "probes" in chosen.options:
        options["probes"] = source.probes.images
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-unverified-", dir=output.parent) as folder:
        aside = Path(folder) / output.name
        report = _saved(source, format, aside, options)
        written = load(aside, trust=True)  # it was written here
        parity = verify(source.probes, written, chosen.tolerance)
        if chosen.not_judged and "CPUExecutionProvider" in written.runtime:
            parity = replace(parity, not_judged=chosen.not_judged)
        if parity.passed and not report.failures:
            _move(aside, output)
            return Exported(output, parity, report)
        images = source.probes.images[parity.worst][:DIVERGENCE_IMAGES]
        where = first_divergence(source.model, written, images, chosen.layers, chosen.tolerance.relative)
        failed = output.with_name(f"{output.name}.failed")
        _move(aside, failed)
    reasons = [*report.failures, *parity.failures]
    if where and not parity.passed:
        reasons.append(str(where))
    raise ParityError(
        f"{format} export of '{source.path}' differs from its source: {'; '.join(reasons)}; see '{failed}'"
    )


def _saved(source: Source, format: str, path: Path, options: Mapping[str, Any]) -> Report:
    """Write the file; what a user's own network does that an exporter cannot follow is a UserError, not our bug."""
    try:
        return EXPORTERS[format].save(source.model, source.artifact, path, **options) or Report()
    except UserError:
        raise
    except Exception as error:
        if not source.artifact.network:
            raise
        raise UserError(
            f"{source.artifact.model} cannot be written as {format}: {reason_of(error)}",
            hint="its forward should compute with tensors alone, whatever their values; or try another --format",
        ) from error


def _move(aside: Path, target: Path) -> None:
    """Give a file its name; the files that it refers to get theirs first."""
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
