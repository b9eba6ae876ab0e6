"""The tables that `dgad bench` prints, and notes on what they cannot say."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.filesize import decimal

from cli.printing.results_table import interval_text, share_text
from cli.printing.terminal import Heading, fits, plain_table, say
from dgad_tk.strangers.number_text import format_fraction

if TYPE_CHECKING:
    from cli.printing.bench.report import Asked, Benched, BenchReport
    from exporters.bench.latency import Measurement

MISSING = "-"


def bench_table(report: "BenchReport", batches: Sequence[int]) -> None:
    """Print latencies, with `--robust` the survival table, and notes."""
    _latencies(report.files, batches)
    if report.asked is not None:
        print()
        _survival(report.files, report.asked)
    for note in _notes(report):
        say(note)


_FILE: list[Heading] = ["file", "weights", "size", ("parameters", "params"), "mult-adds"]
_SETTING: list[Heading] = [
    "threads",
    "batch",
    "p50 ms",
    "p95 ms",
    "images/s",
    "x first",
    ("peak memory", "memory"),
    "runs",
]


def _latencies(files: "Sequence[Benched]", batches: Sequence[int]) -> None:
    """Print one table, or on a narrow terminal two: what the files are, and how fast."""
    about: list[list[str]] = []
    rows: list[list[str]] = []
    for file in files:
        subject, counts = file.subject, file.subject.complexity
        products = MISSING if counts.multiply_adds is None else _count(counts.multiply_adds)
        cells = [file.path, counts.weights, decimal(subject.bytes), _count(counts.parameters), products]
        about.append(cells)
        found = {(each.threads, each.batch): each for each in file.measurements}
        sizes = sorted({*batches, subject.fixed_batch or batches[0]})
        for threads in dict.fromkeys(each.threads for each in file.measurements):
            for batch in sizes:
                rows.append([*cells, str(threads), str(batch), *_setting(found.get((threads, batch)))])
                cells = [""] * len(cells)
    if fits([*_FILE, *_SETTING], rows):
        plain_table([*_FILE, *_SETTING], rows, left=2)
        return
    plain_table(_FILE, about, left=2)
    print()
    plain_table([_FILE[0], *_SETTING], [[row[0], *row[len(_FILE) :]] for row in rows], left=3)


def _setting(measurement: "Measurement | None") -> list[str]:
    if measurement is None:
        return [MISSING] * 6
    relative, memory = measurement.relative, measurement.peak_memory_bytes
    return [
        _three_digits(measurement.p50_ms),
        _three_digits(measurement.p95_ms),
        _three_digits(measurement.images_per_second),
        MISSING if relative is None else _three_digits(relative),
        MISSING if memory is None else decimal(memory),
        f"{measurement.runs:,}",
    ]


def _survival(files: "Sequence[Benched]", asked: "Asked") -> None:
    """Print what each file costs, and what is left of its robustness."""
    rows, steps = [], ""
    for file in files:
        first, fastest = file.measurements[0], max(file.measurements, key=lambda each: each.images_per_second)
        shares = ["refused", "refused", MISSING]
        if file.robust is not None and not isinstance(file.robust, str):
            (attack,) = file.robust.attacks
            steps = str(attack.params["steps"])
            clean, robust = share_text(file.robust.clean.accuracy), share_text(attack.robust_accuracy)
            shares = [clean, robust, interval_text(attack.ci95)]
        cells = [
            file.path,
            decimal(file.subject.bytes),
            f"{_three_digits(first.p50_ms)} (batch {first.batch})",
            f"{_three_digits(fastest.images_per_second)} (batch {fastest.batch})",
        ]
        rows.append([*cells, *shares])
    pgd = f"PGD-{steps} {format_fraction(asked.eps)}"
    plain_table(["file", "size", "p50 ms", "images/s", "clean", pgd, "95 % interval"], rows)


def _notes(report: "BenchReport") -> Iterator[str]:
    runtimes = dict.fromkeys(each.runtime for file in report.files for each in file.measurements)
    yield f"{report.processor}, {report.cores} cores; {', '.join(runtimes)}"
    yield "timed: a batch in the host's memory to its logits there; images/s: batch over p50"
    yield "x first: how many times the first file's images/s"
    yield "peak memory: the process' largest from before it opened the file, without what its imports took"
    if report.quota is not None and report.quota < report.cores:
        yield (
            f"a quota gives this process the time of {report.quota:.3g} of {report.cores} cores: where its threads use "
            "more, they are stopped for a while, as p95 shows"
        )
    load = report.load_average
    if load is not None and load > report.cores / 2:
        yield (
            f"load {load:.1f} on {report.cores} cores in the minute before: if that work went on, threads "
            "waited for a core, which distorts times and ratios"
        )
    for file in report.files:
        if file.subject.fixed_batch:
            yield f"{file.path} takes batches of exactly {file.subject.fixed_batch}"
    if report.asked is None:
        return
    yield (
        f"PGD on {report.asked.n:,} {report.asked.split} images of {report.asked.dataset}: through each file's own "
        "gradients, judged by its own runtime. An upper bound: `dgad attack --suite full` asks harder"
    )
    for file in report.files:
        for note in [f"refused: {file.robust}"] if isinstance(file.robust, str) else file.doubts:
            yield f"{file.path}: {note}"


def _count(number: int) -> str:
    """`77.7 k`, `12.5 M`, `1.81 G`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{_three_digits(number / limit)} {unit}"
    return str(number)


def _three_digits(value: float) -> str:
    """Three significant digits, and all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
