"""`dgad bench`."""

import math
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.flags.classes import ClassNames
from cli.flags.fitting import open_file
from cli.flags.images import DataDir, DatasetName, ImageFlags, ImageSize, Resize
from cli.flags.models import check_files, default_eps, open_model
from cli.flags.preprocessing import ChannelOrder, InputRange, Layout, LogitsOutput, Mean, Std, interface_of
from cli.flags.values import AsJson, Quiet, Trust, check_replaceable, real, whole
from cli.printing.bench.report import SCHEMA, Asked, Benched, BenchReport
from cli.printing.bench.table import bench_table
from cli.printing.progress import AttackProgress, BenchProgress
from cli.printing.results_table import print_json
from cli.printing.terminal import aside
from dgad_tk.common import UserError, lookup, write_json
from dgad_tk.strangers import number_text
from dgad_tk.strangers.number_text import parse_fraction

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import Predictor
    from dgad_tk.data import Dataset
    from evaluators.results import Results

MOST_THREADS = 1024
"""Many more take the memory of the machine, and no machine is faster for it."""


def bench(
    context: typer.Context,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help=".onnx, .pt, .pt2 or .safetensors; compared with the first.")
    ],
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,64",
    threads: Annotated[str | None, typer.Option(help="Thread counts, such as 1,2. [all cores]")] = None,
    provider: Annotated[str, typer.Option(help="cpu or cuda; a file that would run elsewhere is refused.")] = "cpu",
    seconds: Annotated[float, real("--seconds", "How long each file is timed in each setting.")] = 2.0,
    robust: Annotated[
        bool, typer.Option("--robust", help="Also measure clean and PGD-10 accuracy of each file.")
    ] = False,
    limit: Annotated[int, whole("--limit", "With --robust: take the first N test images.", least=1)] = 1000,
    eps: Annotated[
        str | None, typer.Option(help="With --robust: radius. [what the first file was trained for]")
    ] = None,
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    classes: ClassNames = None,
    mean: Mean = None,
    std: Std = None,
    input_range: InputRange = None,
    layout: Layout = None,
    channel_order: ChannelOrder = None,
    logits_output: LogitsOutput = None,
    output: Annotated[Path | None, typer.Option(help="File to write the results to, as JSON.")] = None,
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Time model files side by side in their own runtimes.

    Each file runs in the runtime that would deploy it, on noise. With --robust the files are also attacked, on images
    that are prepared as --mean, --std, --input-range and --channel-order say.
    """
    batches = _numbers(batch, "--batch")
    counts = _numbers(threads, "--threads", MOST_THREADS) if threads is not None else []
    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds must be above 0, got {seconds:g}", hint="for example --seconds 2")
    radius = parse_fraction(eps) if eps is not None else None
    if radius == 0:
        raise UserError("--eps must be above 0", hint="for example --eps 8/255")
    interface = interface_of(mean, std, input_range, layout, logits_output, channel_order)
    if not robust and (classes is not None or interface != interface_of(layout=layout)):
        raise UserError(
            "--mean, --std, --input-range, --channel-order, --logits-output and --classes are for --robust: timing "
            "takes noise",
            hint="add --robust, or leave them out",
        )
    check_files(files)
    if output is not None:
        check_replaceable("--output", output, "bench.json", f'"{SCHEMA}"', "was not written by `dgad bench`")
        output.parent.mkdir(parents=True, exist_ok=True)

    from dgad_tk.artifacts.machine import processor
    from dgad_tk.cores import allowed_cores
    from dgad_tk.quota import core_quota
    from exporters.bench.describe import describe
    from exporters.bench.latency import measure
    from exporters.bench.worker import PROVIDERS

    lookup(PROVIDERS, provider, "provider")
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    command, flags = shlex.join(context.obj), ImageFlags(dataset, data_dir, image_size, resize, classes)
    # Before the minutes of timing, so that what cannot be attacked is said at once.
    opened = [open_model(path, flags, interface, trust=trust, only="test") for path in files] if robust else []
    shapes: list[tuple[int, int, int] | None] = [predictor.input_shape for predictor, _ in opened] or [
        open_file(path, flags, interface, trust=trust).predictor.input_shape if dataset or image_size else None
        for path in files
    ]
    subjects = [aside(describe)(*each, interface, trust=trust) for each in zip(files, shapes, strict=True)]
    asked = _asked(opened, radius, limit) if opened else None
    for predictor, _ in () if quiet else opened:
        for note in predictor.notes:
            print(f"note: {predictor.path}: {note}", file=sys.stderr)
    with BenchProgress(quiet=quiet) as progress:
        measured = measure(
            subjects, batches=batches, threads=counts, provider=provider, seconds=seconds, on_progress=progress
        )
    survival: list[Results | str | None] = [None] * len(files)
    if asked is not None:
        survival = [_attacked(predictor, images, asked, command, quiet=quiet) for predictor, images in opened]
    benched = [Benched(*each) for each in zip(subjects, measured, survival, strict=True)]
    cores = allowed_cores(), core_quota()
    report = BenchReport(command, provider, seconds, processor(), *cores, load_average, benched, asked)
    document = report.to_dict()
    if output is not None:
        write_json(output, document)
    if as_json:
        print_json([document])
    else:
        bench_table(report, batches)


def _numbers(text: str, flag: str, most: int = 999_999) -> list[int]:
    """`1,8,64` as numbers, ascending, each once."""
    hint = f"for example {flag} 1,2"
    try:
        numbers = sorted({number_text.whole(part) for part in text.split(",")})
    except number_text.NotANumberError as error:
        numbers, hint = [0], error.hint or hint
    if numbers[0] < 1:
        raise UserError(f"{flag} must be whole numbers from 1, got '{text}'", hint=hint)
    if numbers[-1] > most:
        raise UserError(f"{flag} must be at most {most:,}, got {numbers[-1]:,}", hint=hint)
    return numbers


def _asked(opened: "list[tuple[Predictor, Dataset]]", radius: float | None, limit: int) -> Asked:
    """The question to all files; refuse files that were trained on different images."""
    predictor, images = opened[0]
    for other, theirs in opened[1:]:
        if (theirs.name, theirs.classes, len(theirs.test)) != (images.name, images.classes, len(images.test)):
            raise UserError(
                f"'{predictor.path}' was trained on {images.name}, '{other.path}' on other images, {theirs.name}",
                hint="a survival table is about one dataset: name it with --dataset and --data-dir",
            )
    return Asked(images.name, min(limit, len(images.test)), radius or default_eps(predictor.artifact, images, "linf"))


def _attacked(predictor: "Predictor", images: "Dataset", asked: Asked, command: str, *, quiet: bool) -> "Results | str":
    """What PGD finds on one file, or why it is refused."""
    from evaluators.engine.evaluate import evaluate
    from evaluators.plan.rows import plan
    from evaluators.report.files import results

    part = images.test.subset(asked.n)
    if not quiet:
        print(f"{predictor.path}: PGD on {len(part):,} images, judged by {predictor.runtime}", file=sys.stderr)
    try:
        with AttackProgress(quiet=quiet) as progress:
            rows = plan(["pgd"], norm="linf", eps=[asked.eps])
            evaluation = evaluate(predictor, part, rows, classes=images.classes, on_progress=progress)
    except UserError as error:  # a file whose gradients cannot be trusted should not cost the others their figures
        return error.message
    return results(evaluation, command=command, dataset=images.name, split=asked.split, resize=images.resize)
