"""Progress on stderr: a live line on a terminal, plain lines elsewhere.

Plain lines are for logs. How far the work is stands in one soon after it began, and then in one a minute. The end of an
epoch or of an attack has a line of its own as long as there are few: `ALLOWANCE` of them come at once, and that
allowance grows by one a minute. Of those that are left out, the newest is printed at the end.
"""

import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cli.printing.terminal import console, is_live
from dgad_tk.strangers.names import shown

if TYPE_CHECKING:
    from dgad_tk.training.job import Progress as TrainingState
    from evaluators.engine.evaluate import Progress as AttackState

QUIET_SECONDS = 60.0
"""Between two lines about how far the work is, if stderr is no terminal."""
FIRST_SECONDS = 5.0
"""Until the first of them."""
ALLOWANCE = 20
"""Lines about what is finished that may come at once."""


class _Progress(Progress):
    """A live bar on a terminal, plain lines elsewhere. A context manager, in which stderr takes all that is printed.

    Args:
        quiet: print nothing but warnings.
        clock: seconds that only grow.
    """

    def __init__(self, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.quiet = quiet
        self.moving = is_live(sys.stderr) and not quiet
        self.bars: dict[str, TaskID] = {}
        self.begun: dict[str, tuple[float, float]] = {}
        self.clock = clock
        self.due = clock() + FIRST_SECONDS
        self.allowed, self.counted = float(ALLOWANCE), clock()
        self.held: str | None = None
        self.aside = redirect_stdout(sys.stderr)  # what a network of the user's own prints is no answer
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console(sys.stderr),
            disable=not self.moving,
            refresh_per_second=4,
        )

    def __enter__(self) -> Self:
        self.aside.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.aside.__exit__(kind, error, trace)
        if self.held is not None:
            self.line(self.held)

    def line(self, text: str) -> None:
        """One line of the log."""
        if self.moving:
            self.console.print(shown(text), markup=False)
        elif not self.quiet:
            print(shown(text), file=sys.stderr, flush=True)
        self.held = None

    def message(self, text: str) -> None:
        """A line of the log; with --quiet only if it is a warning."""
        if self.quiet and text.startswith("warning: "):
            print(shown(text), file=sys.stderr, flush=True)
        self.line(text)

    def ended(self, text: str, *, last: bool) -> None:
        """A line about one of many things that are done, unless too many of them came in the last minutes.

        Args:
            last: of its kind; it is printed in any case.
        """
        now = self.clock()
        self.allowed = min(ALLOWANCE, self.allowed + (now - self.counted) / QUIET_SECONDS)
        self.counted = now
        if self.moving or last or self.allowed >= 1:
            self.allowed = max(0.0, self.allowed - 1)
            self.due = now + QUIET_SECONDS
            self.line(text)
        else:
            self.held = text

    def show(self, name: str, done: float, total: float, detail: str) -> None:
        """Move the bar `name`; if there is no terminal, print a line now and then."""
        now = self.clock()
        if name not in self.bars:
            self.bars[name] = self.add_task(shown(name), total=total, completed=int(done), detail="")
            self.begun[name] = (now, done)
        self.update(self.bars[name], completed=done, total=total, detail=shown(detail))
        begun, before = self.begun[name]  # a resumed run was not at 0, and did not come this far just now
        if not self.moving and before < done < total and now >= self.due:
            left = duration((now - begun) * (total - done) / (done - before))
            if self.held is not None:
                self.allowed = 0.0  # this line tells what the one that is left out would have told
                self.counted = now
            self.line(f"{name} {done / total:.0%}{f' {detail}' if detail else ''}, {left} left")
            self.due = now + QUIET_SECONDS


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
            text = f"{state.role} epoch {state.epoch + 1}/{state.epochs}  {terms}  {selected}"
            self.ended(text, last=state.epoch + 1 == state.epochs)
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
            self.ended(f"{state.number}/{state.rows} {state.row}: {detail}", last=state.number == state.rows)


class BenchProgress(_Progress):
    """`on_progress` of `exporters.bench.latency.measure`."""

    def __call__(self, share: float) -> None:
        self.show("timing", share, 1.0, "")


class TrialProgress(_Progress):
    """`on_progress` of `evaluators.preprocessings.trial.try_all`."""

    def __call__(self, done: int, images: int, left: int) -> None:
        self.show("preprocessings", done, images, f"{done}/{images} images, {left} left to try")
