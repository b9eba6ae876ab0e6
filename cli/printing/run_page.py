"""report.html of a training run, written while the run goes on."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dgad_tk.common import UserError, reason_of

if TYPE_CHECKING:
    from dgad_tk.artifacts.runs import RunFolder
    from dgad_tk.training.job import Progress as TrainingState

SECONDS = 5.0
"""Between two pages at least, however short the epochs are."""
SHARE = 0.02
"""Of the run's time that pages may take at most, once epochs are longer than that."""


class RunPage:
    """Writes the page after the epochs of a run and at its end. Whatever happens to the page, the training goes on.

    A page that cannot be written, as on a full disk, is a warning and is tried again. An error in the page itself is a
    bug: it is a warning too, no further page is written, and `raise_bug` raises it, for when the training is saved.

    Args:
        message: gets the warnings.
    """

    def __init__(self, message: Callable[[str], None]) -> None:
        self.message = message
        self.folder: RunFolder | None = None
        self.path: Path | None = None
        self._bug: Exception | None = None
        self._due = 0.0
        self._said: set[str] = set()

    def begin(self, folder: "RunFolder") -> None:
        """Take the folder that the run has been given."""
        self.folder = folder

    def after(self, state: "TrainingState") -> None:
        """Write the page if an epoch has ended and the last page is old enough."""
        if state.metrics is not None and time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write the page; `path` says where it is, and is None if it could not be written."""
        if self.folder is None or self._bug is not None:
            return
        from evaluators.report.training import write_run_page

        begun, self.path = time.monotonic(), None
        try:
            self.path = write_run_page(self.folder)
        except (OSError, UserError) as error:
            self._warn(error)
        except Exception as error:  # noqa: BLE001 - hours of training must not end here; `raise_bug` raises it
            self._bug = error
            self._warn(error)
        ended = time.monotonic()
        self._due = ended + max(SECONDS, (ended - begun) / SHARE)

    def raise_bug(self) -> None:
        """Raise what went wrong within the page, with its traceback."""
        if self._bug is not None:
            raise self._bug

    def _warn(self, error: Exception) -> None:
        """Say it once, not after each epoch."""
        said = f"warning: report.html was not written, training goes on: {reason_of(error)}"
        if said not in self._said:
            self._said.add(said)
            self.message(said)
