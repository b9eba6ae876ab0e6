"""`dgad bench`."""

import json
import math
import os
import platform
import re
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.flags.models import default_eps, named_images, open_model
from cli.flags.preprocessing import interface_of
from cli.flags.values import TRUST, real, whole
from dgad_tk.common import UserError, lookup, write_json
from dgad_tk.strangers import number_text
from dgad_tk.strangers.number_text import parse_fraction

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import Predictor
    from dgad_tk.data import Dataset
    from exporters.bench.describe import Subject
    from exporters.bench.latency import Measurement

SCHEMA = "dgad/bench/1"
PROVIDERS = {"cpu": 0, "cuda": 0}
MOST_THREADS = 1024
"""Many more take the memory of the machine, and no machine is faster for it."""


def bench(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(help=".onnx, .pt, .pt2 or .safetensors; compared with the first.")],
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,64",
    threads: Annotated[str | None, typer.Option(help="Thread counts, such as 1,2. [all cores]")] = None,
    provider: Annotated[str, typer.Option(help="cpu or cuda; a file that would run elsewhere is refused.")] = "cpu",
    seconds: Annotated[float, real("--seconds", "How long each file is timed in each setting.")] = 2.0,
    robust: Annotated[
        bool, typer.Option("--robust", help="Also measure clean and PGD-10 accuracy of each file.")
    ] = False,
    dataset: Annotated[str | None, typer.Option(help="Images of the files. [those that each was trained on]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the images. [as in training]")] = None,
    image_size: Annotated[int | None, whole("--image-size", "Resize an image folder to this. [as in training]")] = None,
    limit: Annotated[int, whole("--limit", "With --robust: the first N test images.", least=1)] = 1000,
    eps: Annotated[
        str | None, typer.Option(help="With --robust: radius. [what the first file was trained for]")
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="With --robust: what files from elsewhere subtract, one number or one per channel. [nothing]"
        ),
    ] = None,
    std: Annotated[str | None, typer.Option(help="With --robust: what they divide by then. [1]")] = None,
    input_range: Annotated[
        str | None, typer.Option(help="With --robust: range of their pixels, such as 0-255. [0-1]")
    ] = None,
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc. [told from the shape]")] = None,
    logits_output: Annotated[
        str | None, typer.Option(help="With --robust: the output to attack. [told from the outputs]")
    ] = None,
    trust: TRUST = False,
    output: Annotated[Path | None, typer.Option(help="File to write the results to, as JSON.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time model files side by side, each in the runtime that would deploy it."""
    batches = _numbers(batch, "--batch")
    counts = _numbers(threads, "--threads", MOST_THREADS) if threads is not None else []
    lookup(PROVIDERS, provider, "provider")
    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds must be above 0, got {seconds:g}", hint="for example --seconds 2")
    radius = parse_fraction(eps) if eps is not None else None
    if radius == 0:
        raise UserError("--eps must be above 0", hint="for example --eps 8/255")
    interface = interface_of(mean, std, input_range, layout, logits_output)
    if not robust and interface != interface_of(None, None, None, layout, None):
        raise UserError(
            "--mean, --std, --input-range and --logits-output are for --robust: timing takes noise",
            hint="add --robust, or leave them out",
        )
    for path in files:
        if not path.exists():
            raise UserError(f"no such file: '{path}'", hint="`dgad export` writes student.onnx into the current folder")
    if output is not None:
        _check_output(output)

    from cli.printing.bench_table import bench_table
    from cli.printing.progress import BenchProgress
    from dgad_tk.artifacts.record import tool_versions
    from exporters.bench.describe import describe
    from exporters.bench.latency import available_threads, measure

    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    named = [named_images(path, dataset, data_dir, image_size) for path in files]
    shapes = [images.shape if images else None for images in named]
    subjects = [describe(path, shape, interface, trust=trust) for path, shape in zip(files, shapes, strict=True)]
    # Before the minutes of timing, so that what cannot be attacked is said at once.
    opened = (
        [open_model(path, dataset, data_dir, image_size, interface, trust=trust) for path in files] if robust else []
    )
    for path, (predictor, _) in zip(files, opened, strict=False):
        for note in () if quiet else predictor.notes:
            print(f"note: {path}: {note}", file=sys.stderr)
    with BenchProgress(quiet=quiet) as progress:
        measured = measure(
            subjects, batches=batches, threads=counts, provider=provider, seconds=seconds, on_progress=progress
        )
    environment = {**tool_versions(), "processor": _processor(), "cores": available_threads()}
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(context.obj),
        "provider": provider,
        "seconds": seconds,
        "environment": environment | {"load_average": load_average},
        "files": [_entry(subject, found) for subject, found in zip(subjects, measured, strict=True)],
    }
    if opened:
        document |= _question(opened, radius, limit)
        for entry, (predictor, images) in zip(document["files"], opened, strict=True):
            entry["robust"] = _robust(predictor, images, document, quiet)
    if output is not None:
        write_json(output, document)
    if as_json:
        print(json.dumps(document, allow_nan=False))
        return
    bench_table(document, batches)


def _numbers(text: str, flag: str, most: int = 999_999) -> list[int]:
    """`1,8,64` as numbers, ascending, each once."""
    try:
        numbers = sorted({number_text.whole(part) for part in text.split(",")})
    except number_text.NotANumberError as error:
        numbers, hint = [0], error.hint
    else:
        hint = ""
    if numbers[0] < 1:
        raise UserError(f"{flag} must be whole numbers from 1, got '{text}'", hint=hint or f"for example {flag} 1,2")
    if numbers[-1] > most:
        raise UserError(f"{flag} must be at most {most:,}, got {numbers[-1]:,}", hint=f"for example {flag} 1,2")
    return numbers


def _check_output(output: Path) -> None:
    """Make its folder, before minutes of work for it.

    Raises:
        UserError: it is a folder, or a file that is not ours.
    """
    if output.is_dir():
        raise UserError(f"--output '{output}' is a folder", hint=f"name a file, such as {output}/bench.json")
    if output.exists() and f'"{SCHEMA}"' not in output.read_text(encoding="utf-8", errors="replace")[:200]:
        raise UserError(f"'{output}' exists and was not written by `dgad bench`", hint="choose another --output")
    output.parent.mkdir(parents=True, exist_ok=True)


def _processor() -> str:
    """The CPU's name, which Python itself tells only on some systems."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _entry(subject: "Subject", found: "list[Measurement]") -> dict[str, Any]:
    entry: dict[str, Any] = {**asdict(subject), "path": str(subject.path)}
    entry |= entry.pop("complexity")
    return entry | {"measurements": [asdict(each) for each in found]}


def _question(opened: "list[tuple[Predictor, Dataset]]", radius: float | None, limit: int) -> dict[str, Any]:
    """Images and threat that all files are asked alike.

    Raises:
        UserError: the files were trained on different images.
    """
    predictor, images = opened[0]
    for other, theirs in opened[1:]:
        if (theirs.name, theirs.classes, len(theirs.test)) != (images.name, images.classes, len(images.test)):
            raise UserError(
                f"'{predictor.path}' was trained on {images.name}, '{other.path}' on other images, {theirs.name}",
                hint="a survival table is about one dataset: name it with --dataset and --data-dir",
            )
    return {
        "dataset": {"name": images.name, "split": "test", "n": min(limit, len(images.test))},
        "threat": {"norm": "linf", "eps": radius or default_eps(predictor.artifact, images, "linf")},
    }


def _robust(predictor: "Predictor", images: "Dataset", document: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """Accuracy of one file on clean images and under PGD, or why it has none."""
    from cli.printing.progress import AttackProgress
    from evaluators.engine.evaluate import evaluate
    from evaluators.plan.rows import plan
    from evaluators.report.files import results

    part = images.test.subset(document["dataset"]["n"])
    rows = plan(["pgd"], norm="linf", eps=[document["threat"]["eps"]])
    if not quiet:
        print(f"{predictor.path}: PGD on {len(part):,} images, judged by {predictor.runtime}", file=sys.stderr)
    try:
        with AttackProgress(quiet=quiet) as progress:
            evaluation = evaluate(predictor, part, rows, classes=images.classes, on_progress=progress)
    except UserError as error:  # a file whose gradients cannot be trusted should not cost the others their figures
        return {"status": "refused", "reason": error.message}
    report = results(evaluation, command=document["command"], dataset=images.name, split="test")
    (attack,) = report.attacks
    doubts = [item.detail for item in report.checks.items if item.verdict != "high"]
    return {
        "status": "done",
        "reason": "",
        "clean_accuracy": report.clean.accuracy,
        "robust_accuracy": attack.robust_accuracy,
        "ci95": attack.ci95,
        "steps": attack.params["steps"],
        "twin": report.twin,
        "notes": list(dict.fromkeys([*predictor.notes, *doubts, *attack.flags])),
    }
