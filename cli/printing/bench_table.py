"""The tables that `dgad bench` prints, and what they cannot say."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cli.printing.results_table import WIDE
from dgad_tk.strangers.number_text import format_fraction

MISSING = "-"


def bench_table(document: dict[str, Any], batches: Sequence[int]) -> None:
    """Print latencies, with `--robust` the survival table, and notes."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(_latencies(document["files"], batches))
    if "threat" in document:
        console.print()
        console.print(_survival(document))
    for note in _notes(document):
        print(note)


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(name, overflow="fold")  # on a narrow terminal, paths are what can do with two lines
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _latencies(files: Sequence[dict[str, Any]], batches: Sequence[int]) -> Table:
    settings = ("threads", "batch", "p50 ms", "p95 ms", "images/s", "x first", "peak memory", "runs")
    table = _table(["file", "weights"], ["size", "parameters", "mult-adds", *settings])
    for file in files:
        cells = [
            file["path"],
            file["weights"],
            decimal(file["bytes"]),
            _count(file["parameters"]),
            MISSING if file["multiply_adds"] is None else _count(file["multiply_adds"]),
        ]
        found = {(each["threads"], each["batch"]): each for each in file["measurements"]}
        own = {file["fixed_batch"]} if file["fixed_batch"] else set()
        for threads in dict.fromkeys(threads for threads, _ in found):
            for batch in sorted({*batches, *own}):
                table.add_row(*cells, str(threads), str(batch), *_setting(found.get((threads, batch))))
                cells = [""] * len(cells)
    return table


def _setting(measurement: dict[str, Any] | None) -> list[str]:
    if measurement is None:
        return [MISSING] * 6
    relative, memory = measurement["relative"], measurement["peak_memory_bytes"]
    return [
        _three_digits(measurement["p50_ms"]),
        _three_digits(measurement["p95_ms"]),
        _three_digits(measurement["images_per_second"]),
        MISSING if relative is None else _three_digits(relative),
        MISSING if memory is None else decimal(memory),
        f"{measurement['runs']:,}",
    ]


def _survival(document: dict[str, Any]) -> Table:
    """One student in all its files: what each costs and what is left of its robustness."""
    files = document["files"]
    eps = format_fraction(document["threat"]["eps"])
    steps = next((file["robust"]["steps"] for file in files if file["robust"]["status"] == "done"), "")
    table = _table(["file"], ["size", "p50 ms", "images/s", "clean", f"PGD-{steps} {eps}", "95 % interval"])
    for file in files:
        smallest, largest = (
            file["measurements"][0],
            max(file["measurements"], key=lambda each: each["images_per_second"]),
        )
        cells = [
            f"{_three_digits(smallest['p50_ms'])} (batch {smallest['batch']})",
            f"{_three_digits(largest['images_per_second'])} (batch {largest['batch']})",
        ]
        robust = file["robust"]
        if robust["status"] == "done":
            low, high = robust["ci95"]
            shares = [f"{robust['clean_accuracy']:.1%}", f"{robust['robust_accuracy']:.1%}", f"{low:.1%} to {high:.1%}"]
        else:
            shares = ["refused", "refused", MISSING]
        table.add_row(file["path"], decimal(file["bytes"]), *cells, *shares)
    return table


def _notes(document: dict[str, Any]) -> Iterator[str]:
    files, environment = document["files"], document["environment"]
    runtimes = dict.fromkeys(each["runtime"] for file in files for each in file["measurements"])
    yield f"{environment['processor']}, {environment['cores']} cores; {', '.join(runtimes)}"
    yield "timed: a batch in the host's memory to its logits there; images/s: batch over p50"
    yield "x first: how many times the first file's images/s"
    yield "peak memory: the process' largest from before it opened the file, without what its imports took"
    load = environment["load_average"]
    if load is not None and load > environment["cores"] / 2:
        yield (
            f"load {load:.1f} on {environment['cores']} cores in the minute before: if that work went on, threads "
            "waited for a core, which distorts times and ratios"
        )
    for file in files:
        if file["fixed_batch"]:
            yield f"{file['path']} takes batches of exactly {file['fixed_batch']}"
    if "threat" not in document:
        return
    n = document["dataset"]["n"]
    yield (
        f"PGD on {n:,} {document['dataset']['split']} images of {document['dataset']['name']}: through each file's own "
        "gradients, judged by its own runtime. An upper bound: `dgad attack --suite full` asks harder"
    )
    for file in files:
        robust = file["robust"]
        if robust["status"] != "done":
            yield f"{file['path']}: refused: {robust['reason']}"
            continue
        for note in robust["notes"]:
            yield f"{file['path']}: {note}"


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
