"""Writing a model file: it is written aside, compared with its source, and only then gets its name."""

import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dgad_tk.artifacts.predictor import Images
from dgad_tk.artifacts.weights import load_model
from dgad_tk.common import GateError, UserError, lookup, nearest, sha256_file
from exporters.formats import EXPORTERS, Format, load
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

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, path: Path, held_out: Images | None = None) -> None:
        self.path = path
        self.held_out = held_out
        self.model, artifact = load_model(path)
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
        report = chosen.save(source.model, source.artifact, aside, **options) or Report()
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
