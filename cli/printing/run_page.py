"""Pages for people, written beside the work that they are about: whatever happens to a page, the work is kept."""

import time
from collections.abc import Callable
from functools import partial
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


class Pages:
    """Writes pages. None of them ends the work that it is about.

    A page that cannot be written, as on a full disk, is a warning. An error in the page itself is a bug: it is a
    warning too, and `raise_bug` raises it, for when everything else is written and printed.

    Args:
        message: gets the warnings, each once.
        kept: what the warnings say of the work itself.

    Attributes:
        bug: the first error in a page itself.
    """

    def __init__(self, message: Callable[[str], None], kept: str) -> None:
        self.message, self.kept = message, kept
        self.bug: Exception | None = None
        self._said: set[str] = set()

    def write(self, page: Callable[[], Path], name: str) -> Path | None:
        """Where the page is; None if it could not be written.

        Args:
            page: writes it, and returns its path.
            name: of the page, for the warning.
        """
        try:
            return page()
        except (OSError, UserError) as error:
            self._warn(name, error)
        except Exception as error:  # noqa: BLE001 - hours of work must not end here; `raise_bug` raises it
            self.bug = self.bug or error
            self._warn(name, error)
        return None

    def raise_bug(self) -> None:
        """Raise what went wrong within a page, with its traceback."""
        if self.bug is not None:
            raise self.bug

    def _warn(self, name: str, error: Exception) -> None:
        said = f"warning: {name} was not written, {self.kept}: {reason_of(error)}"
        if said not in self._said:
            self._said.add(said)
            self.message(said)


class RunPage:
    """Writes the page after the epochs of a run and at its end, as `Pages` does. After a bug no further one is tried.

    Args:
        message: gets the warnings, each once and not after each epoch.
    """

    def __init__(self, message: Callable[[str], None]) -> None:
        self.folder: RunFolder | None = None
        self.path: Path | None = None
        self._pages = Pages(message, "training goes on")
        self._due = 0.0

    def begin(self, folder: "RunFolder") -> None:
        """Take the folder that the run has been given."""
        self.folder = folder

    def after(self, state: "TrainingState") -> None:
        """Write the page if an epoch has ended and the last page is old enough."""
        if state.metrics is not None and time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Write the page; `path` says where it is, and is None if it could not be written."""
        if self.folder is None or self._pages.bug is not None:
            return
        from evaluators.report.training import write_run_page

        begun = time.monotonic()
        self.path = self._pages.write(partial(write_run_page, self.folder), self.folder.report.name)
        ended = time.monotonic()
        self._due = ended + max(SECONDS, (ended - begun) / SHARE)

    def raise_bug(self) -> None:
        """Raise what went wrong within the page, with its traceback."""
        self._pages.raise_bug()
