"""`dgad export`."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.flags.images import ImageFlags
from cli.flags.values import AsJson, Trust, whole
from cli.printing.export_table import print_export
from cli.printing.terminal import aside, say
from dgad_tk.common import GateError, UserError, lookup
from dgad_tk.strangers.names import check_utf8

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import Images
    from dgad_tk.artifacts.record import Artifact
    from dgad_tk.data import Dataset
    from exporters.export import Exported

FEWEST = 16
"""Images held out that are worth comparing on. If there are fewer, noise does as well."""
COMPARED, COMPARED_FOR_SHARES = 32, 128
"""Images to compare on. Any image shows a difference of logits; shares of equal answers need more images."""


def export(
    source: Annotated[
        Path | None, typer.Argument(help="Run folder or .safetensors file. [the newest finished run]")
    ] = None,
    format: Annotated[str, typer.Option(help="See `dgad list formats`, or all.")] = "onnx",
    output: Annotated[
        Path | None, typer.Option(help="File to write. [student.onnx or its like in the current folder]")
    ] = None,
    opset: Annotated[int | None, whole("--opset", "ONNX opset, 18 to 23. [20]")] = None,
    calibration_samples: Annotated[
        int | None, whole("--calibration-samples", "INT8: training images to calibrate on. [512, or half of fewer]")
    ] = None,
    calibration_method: Annotated[
        str | None, typer.Option(help="INT8: how ranges are found: minmax, percentile or entropy. [minmax]")
    ] = None,
    calibrate_on: Annotated[
        str | None,
        typer.Option(help="INT8: images to calibrate on: clean, adversarial or both, half and half. [clean]"),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="INT8: node to leave in float, by name or pattern. Repeatable."),
    ] = None,
    search_exclusions: Annotated[
        bool | None, typer.Option("--search-exclusions", help="INT8: find the few nodes that are better left in float.")
    ] = None,
    reduce_range: Annotated[
        bool | None,
        typer.Option("--reduce-range", help="INT8: 7-bit weights, for x86 CPUs without VNNI, whose sums may saturate."),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="Source of the run's own network where it is now, as nets/mine.py:build. [as its record says]"
        ),
    ] = None,
    trust: Trust = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that dgad did not write.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a trained student as a deployable file, and verify it.

    The file is compared with its source. If they differ, the exit code is 1 and the file's name ends in .failed.
    With --json there is one line per file.
    """
    flags: dict[str, Any] = locals()

    from dgad_tk.artifacts.runs import newest_run, weights_of
    from exporters.export import ParityError, Source
    from exporters.export import export as run_export
    from exporters.formats import EXPORTERS
    from exporters.onnx_write.float32 import check_opset
    from exporters.onnx_write.int8 import JUDGED, USUAL_SAMPLES, Int8
    from exporters.torch_files.archive import PROGRAMS

    chosen = dict(EXPORTERS) if format == "all" else {format: lookup(EXPORTERS, format, "format")}
    given = {name: value for name, value in flags.items() if name in Int8.__dataclass_fields__ and value is not None}
    int8 = Int8(**given)
    options: dict[str, Any] = {"int8": int8} if given else {}
    if opset is not None:
        check_opset(opset)
        options["opset"] = opset
    for option in options:
        if not any(option in row.options for row in chosen.values()):
            flag = next(iter(given)) if option == "int8" else option
            takes = " or ".join(name for name, row in EXPORTERS.items() if option in row.options)
            raise UserError(
                f"--{flag.replace('_', '-')} does not apply to --format {format}", hint=f"it belongs to {takes}"
            )
    if output is not None and len(chosen) > 1:
        raise UserError("--output names one file, --format all writes several", hint="leave --output out")
    weights = weights_of(source) if source else newest_run(finished=True).best
    check_utf8(str(weights), "the run")
    opened = aside(Source)(weights, trust=trust, network=network)
    for note in opened.notes:
        print(f"note: {note}", file=sys.stderr)
    dataset = _dataset(opened.artifact)
    opened.held_out = _held_out(dataset, exact=all(row.tolerance.agreement == 1 for row in chosen.values()))
    failed: list[str] = []
    for name, row in chosen.items():
        target = output or Path(row.filename)
        wanted = {key: value for key, value in options.items() if key in row.options}
        begun = time.perf_counter()
        if not as_json:
            print(f"{target}: {name}, being written and compared", file=sys.stderr)
        try:
            if "images" in row.options:
                wanted["images"] = _to_calibrate(dataset, (int8.calibration_samples or USUAL_SAMPLES) + JUDGED)
            written = aside(run_export)(opened, name, target, overwrite=overwrite, **wanted)
        except (ParityError, UserError) as error:
            if len(chosen) == 1:
                raise
            # The formats do not depend on each other: the others are still worth having.
            print(f"error: {error}", file=sys.stderr)
            failed.append(name)
            continue
        _print(written, name, weights, time.perf_counter() - begun, as_json=as_json)
        for warning in written.report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if row.note and not as_json:
            print(f"note: {row.note}", file=sys.stderr)
    if failed:
        raise GateError(f"{len(failed)} of {len(chosen)} exports failed: {', '.join(failed)}")
    if not as_json:
        first = output or Path(next(iter(chosen.values())).filename)
        trusting = " --trust" if first.suffix in PROGRAMS else ""
        rounds = "int8" in next(iter(chosen.values())).options
        ask = "--attack autoattack-max" if rounds else "--suite full"  # other attacks flatter an INT8 file
        print(f"next: dgad attack --model {first} {ask}{trusting}", file=sys.stderr)


def _dataset(artifact: "Artifact") -> "Dataset | UserError":
    """The images that the model was trained on, or why they cannot be had."""
    try:
        dataset = ImageFlags().load(artifact)
    except UserError as error:
        return error
    for note in dataset.notes:
        print(f"note: {note}", file=sys.stderr)
    if dataset.shape == artifact.input_shape:
        return dataset
    return UserError(
        f"the images of '{dataset.name}' are {dataset.shape}, the model takes {artifact.input_shape}",
        hint="the dataset is not what it was in training",
    )


def _held_out(dataset: "Dataset | UserError", *, exact: bool) -> "Images | None":
    """Images that the model was not trained on, to compare exports on; None, with a note, if there are none."""
    from evaluators.target.judge import images_of

    if isinstance(dataset, UserError):
        why = str(dataset)
    elif len(dataset.val) < FEWEST:
        why = f"{dataset.name} has no {FEWEST} images held out"
    else:
        return images_of(dataset.val, slice(0, COMPARED if exact else COMPARED_FOR_SHARES))
    print(f"note: verifying on noise, since {why}", file=sys.stderr)
    return None


def _to_calibrate(dataset: "Dataset | UserError", count: int) -> "Images":
    """The first training images; an error if there are none, since noise gives ranges that no image has."""
    from evaluators.target.judge import images_of

    if isinstance(dataset, UserError):
        raise UserError(
            f"INT8 is calibrated on training images, and these cannot be had: {dataset.message}", hint=dataset.hint
        )
    return images_of(dataset.train, slice(0, count))


def _print(written: "Exported", name: str, weights: Path, seconds: float, *, as_json: bool) -> None:
    size = written.path.stat().st_size
    if not as_json:
        say(f"{written.path}: {name} of {weights}, {size / 1024:,.0f} KiB, in {seconds:.1f} s")
        print_export(written)
        return
    document = {
        "schema": "dgad/export/1",
        "file": str(written.path),
        "format": name,
        "source": str(weights),
        "size_bytes": size,
        "seconds": round(seconds, 2),
        **written.parity.as_dict(),
        "findings": dict(written.report.findings),
        "warnings": list(written.report.warnings),
    }
    print(json.dumps(document))
