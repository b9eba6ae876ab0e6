"""How fast model files run, in their deployed runtimes, side by side.

Each file has a process of its own (`worker.py`), so that its memory is its own and no other library's threads are in
it. Only one process works at a time. They take turns of a tenth of a second, so that whatever else the machine does
affects all files alike.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import numpy as np

from dgad_tk.common import UserError
from dgad_tk.cores import usable_cores, users_own
from exporters.bench.describe import Subject
from exporters.bench.worker import Job, serve

TURN = 0.1
"""Seconds that a file is timed before it is the next one's turn."""
MIN_RUNS = 5


@dataclass(frozen=True)
class Measurement:
    """One file at one batch size and thread count.

    Attributes:
        p50_ms, p95_ms: of a call, from a batch in the host's memory to its logits in the host's memory.
        images_per_second: batch size over the median.
        relative: how many times the first file's throughput, in the same setting; None if that was not measured.
        runs: number of calls timed.
        peak_memory_bytes: the process' largest resident memory, from before the file was opened up to calls of this
            batch size (the sizes are warmed up in ascending order), less what it was after the imports. It includes
            modules that the runtime imports to open a file, and nothing on a GPU. None off Linux.
    """

    batch: int
    threads: int
    p50_ms: float
    p95_ms: float
    images_per_second: float
    relative: float | None
    runs: int
    peak_memory_bytes: int | None
    runtime: str


def measure(
    subjects: Sequence[Subject],
    *,
    batches: Sequence[int] = (1, 8, 64),
    threads: Sequence[int] = (),
    provider: str = "cpu",
    seconds: float = 2.0,
    on_progress: Callable[[float], None] | None = None,
) -> list[list[Measurement]]:
    """Time files against each other; for each its measurements, by thread count and then batch size.

    Args:
        batches: sizes to run at; a file of a fixed batch size runs at its own alone.
        threads: of the runtime's pool inside an operator; none given is as many as can run at once.
        provider: row of PROVIDERS. A file that would run elsewhere is an error.
        seconds: to time each file at each setting, and MIN_RUNS calls at least.
        on_progress: receives the share that is done.

    Raises:
        UserError: a file does not open, not on that provider, or does not run at a batch size.
    """
    counts = list(threads) or [usable_cores()]
    found: list[list[Measurement]] = [[] for _ in subjects]
    for done, count in enumerate(counts):
        with ExitStack() as stack:
            workers = [stack.enter_context(closing(_Worker(subject, provider, count))) for subject in subjects]
            for worker in workers:
                worker.runtime = worker.answer()
            cells = [
                _Cell(worker, batch, worker.ask(batch))
                for worker in workers
                for batch in ([worker.subject.fixed_batch] if worker.subject.fixed_batch else sorted(set(batches)))
            ]
            cells.sort(key=lambda cell: cell.batch)  # files of one size take their turns one after another
            for share in _take_turns(cells, seconds):
                if on_progress:
                    on_progress((done + share) / len(counts))
        reference = {cell.batch: cell.p50 for cell in cells if cell.worker is workers[0]}
        for worker, measurements in zip(workers, found, strict=True):
            measurements += [cell.measurement(reference.get(cell.batch)) for cell in cells if cell.worker is worker]
    return found


def _take_turns(cells: "Sequence[_Cell]", seconds: float) -> Iterator[float]:
    """Time each cell for `seconds`; yields the share that is done."""
    turn = min(TURN, seconds / MIN_RUNS)
    while waiting := [cell for cell in cells if sum(cell.times) < seconds or len(cell.times) < MIN_RUNS]:
        for cell in waiting:
            cell.times += cell.worker.ask(cell.batch, turn)
        yield sum(min(1.0, sum(cell.times) / seconds) for cell in cells) / len(cells)


class _Worker:
    """The process of one file, until `close`."""

    runtime = ""

    def __init__(self, subject: Subject, provider: str, threads: int) -> None:
        self.subject, self.threads = subject, threads
        job = Job(str(subject.path), subject.sample, subject.dtype, subject.has_batch_axis, provider, threads)
        new = get_context("spawn")
        self.connection, other = new.Pipe()
        self.process = new.Process(target=serve, args=(other, job), daemon=True)
        with users_own():
            self.process.start()
        other.close()

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def ask(self, batch: int, seconds: float | None = None) -> Any:
        with suppress(ConnectionError):  # `answer` tells why
            self.connection.send((batch, seconds))
        return self.answer()

    def answer(self) -> Any:
        """
        Raises:
            UserError: what the process found wrong with the file, or a signal ended it.
            RuntimeError: the process failed; its traceback is on stderr.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            if code < 0:
                raise UserError(
                    f"the process that ran '{self.subject.path}' was ended by signal {-code}",
                    hint="signal 9 is often a lack of memory: try smaller sizes with --batch",
                ) from None
            raise RuntimeError(f"timing '{self.subject.path}' failed with exit code {code}") from None
        if isinstance(answer, UserError):
            raise answer
        return answer


@dataclass
class _Cell:
    """A file at a batch size, and how long its calls took."""

    worker: _Worker
    batch: int
    peak_memory_bytes: int | None
    times: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return float(np.median(self.times))

    def measurement(self, reference: float | None) -> Measurement:
        """`reference`: median of the first file at this size."""
        return Measurement(
            batch=self.batch,
            threads=self.worker.threads,
            p50_ms=self.p50 * 1e3,
            p95_ms=float(np.percentile(self.times, 95)) * 1e3,
            images_per_second=self.batch / self.p50,
            relative=None if reference is None else reference / self.p50,
            runs=len(self.times),
            peak_memory_bytes=self.peak_memory_bytes,
            runtime=self.worker.runtime,
        )
