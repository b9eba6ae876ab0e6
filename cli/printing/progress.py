"""Progress on stderr: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from dgad_tk.training.job import Progress as TrainingState
    from evaluators.engine.evaluate import Progress as AttackState

QUIET_SECONDS = 10.0
"""Seconds between two lines where stderr is no terminal."""


class _Live:
    """A rich progress bar on a terminal, nothing elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self.quiet = quiet
        self.live = console.is_terminal and not quiet
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not self.live,
            refresh_per_second=4,
        )
        self.tasks: dict[str, TaskID] = {}
        self.begun: dict[str, tuple[float, float]] = {}
        self.last_line = 0.0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def line(self, text: str) -> None:
        """One finished line of the log."""
        if self.live:
            self.bar.console.print(text, highlight=False, markup=False)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)
        self.last_line = time.monotonic()

    def message(self, text: str) -> None:
        """Something to know; a warning is said to the quiet too."""
        if self.quiet and text.startswith("warning: "):
            print(text, file=sys.stderr, flush=True)
        self.line(text)

    def show(self, name: str, done: float, total: float, detail: str) -> None:
        """Move the bar `name`; where there is no terminal, print a line now and then."""
        if name not in self.tasks:
            # A resumed run is not at 0, and did not come this far just now.
            self.tasks[name] = self.bar.add_task(name, total=total, completed=int(done), detail="")
            self.begun[name] = (time.monotonic(), done)
        self.bar.update(self.tasks[name], completed=done, total=total, detail=detail)
        if not self.live and done < total and time.monotonic() - self.last_line > QUIET_SECONDS:
            self.line(f"{name} {done / total:.0%} {detail}" + self._left(name, done, total))

    def _left(self, name: str, done: float, total: float) -> str:
        """`, 34 min left` at the pace so far."""
        begun, before = self.begun[name]
        if done <= before:
            return ""
        return f", {duration((time.monotonic() - begun) * (total - done) / (done - before))} left"


def duration(seconds: float) -> str:
    """`40 s`, `34 min` or `5.2 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class TrainingProgress(_Live):
    """`progress` of a `dgad_tk.training.job.Watcher`."""

    def __call__(self, state: "TrainingState") -> None:
        terms = "  ".join(f"{name} {value:.3f}" for name, value in state.terms.items())
        if state.metrics is not None:
            selected = "  ".join(
                f"{name.replace('_', ' ')} {value:.1%}"
                for name, value in state.metrics.items()
                if name.startswith(("val_", "test_"))
            )
            self.line(f"{state.role} epoch {state.epoch + 1}/{state.epochs}  {terms}  {selected}")
            return
        done = state.epoch * state.steps + state.step
        detail = f"epoch {state.epoch + 1}/{state.epochs}  {terms}  {state.samples_per_second:.0f} images/s"
        self.show(state.role, done, state.epochs * state.steps, detail)


class AttackProgress(_Live):
    """`on_progress` of `evaluators.engine.evaluate`."""

    def __call__(self, state: "AttackState") -> None:
        detail = f"{state.done}/{state.n} images, {state.broken} of {state.attacked} broken"
        self.show(f"{state.number}/{state.rows} {state.row}", state.done, state.n, detail)
        if state.done == state.n:
            self.line(f"{state.number}/{state.rows} {state.row}: {detail}")


class BenchProgress(_Live):
    """`on_progress` of `exporters.bench.latency.measure`."""

    def __call__(self, share: float) -> None:
        self.show("timing", share, 1.0, "")
