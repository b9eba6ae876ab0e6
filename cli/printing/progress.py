"""Progress on stderr: a live line on a terminal, plain lines elsewhere."""

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from dgad_tk.training.job import Progress as TrainingState
    from evaluators.engine.evaluate import Progress as AttackState

QUIET_SECONDS = 10.0
"""Seconds between two lines if stderr is no terminal."""


class _Progress(Progress):
    """A live bar on a terminal, plain lines elsewhere. A context manager."""

    def __init__(self, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self.quiet = quiet
        self.moving = console.is_terminal and not quiet
        self.bars: dict[str, TaskID] = {}
        self.begun: dict[str, tuple[float, float]] = {}
        self.last_line = 0.0
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not self.moving,
            refresh_per_second=4,
        )

    def line(self, text: str) -> None:
        """One finished line of the log."""
        if self.moving:
            self.console.print(text, highlight=False, markup=False)
        elif not self.quiet:
            print(text, file=sys.stderr, flush=True)
        self.last_line = time.monotonic()

    def message(self, text: str) -> None:
        """A line of the log; with --quiet only if it is a warning."""
        if self.quiet and text.startswith("warning: "):
            print(text, file=sys.stderr, flush=True)
        self.line(text)

    def show(self, name: str, done: float, total: float, detail: str) -> None:
        """Move the bar `name`; if there is no terminal, print a line now and then."""
        now = time.monotonic()
        if name not in self.bars:
            self.bars[name] = self.add_task(name, total=total, completed=int(done), detail="")
            self.begun[name] = (now, done)
        self.update(self.bars[name], completed=done, total=total, detail=detail)
        if not self.moving and done < total and now - self.last_line > QUIET_SECONDS:
            begun, before = self.begun[name]  # a resumed run was not at 0, and did not come this far just now
            left = f", {duration((now - begun) * (total - done) / (done - before))} left" if done > before else ""
            self.line(f"{name} {done / total:.0%} {detail}{left}")


def duration(seconds: float) -> str:
    """`40 s`, `34 min` or `5.2 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class TrainingProgress(_Progress):
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


class AttackProgress(_Progress):
    """`on_progress` of `evaluators.engine.evaluate`."""

    def __call__(self, state: "AttackState") -> None:
        detail = f"{state.done}/{state.n} images, {state.broken} of {state.attacked} broken"
        self.show(f"{state.number}/{state.rows} {state.row}", state.done, state.n, detail)
        if state.done == state.n:
            self.line(f"{state.number}/{state.rows} {state.row}: {detail}")


class BenchProgress(_Progress):
    """`on_progress` of `exporters.bench.latency.measure`."""

    def __call__(self, share: float) -> None:
        self.show("timing", share, 1.0, "")
