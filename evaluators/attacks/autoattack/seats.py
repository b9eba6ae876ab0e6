"""Which job sits in which row of a batch, and which jobs wait. All numbers are integers on the host.

APGD and FAB have several jobs per image: one for each target and restart. A job takes a fixed number of steps, and ends
early when its image is broken. Another one then takes its row, so that the batch stays full.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.bool_]
"""A mask over the rows."""


def even(jobs: int, most: int) -> int:
    """Rows of a batch, at most `most`, that spread jobs of one length evenly over as few batches as possible.

    252 jobs in 250 rows would leave two jobs that go on alone, at several times the price per image.
    """
    batches = max(1, -(-jobs // most))
    return max(1, -(-jobs // batches))


class Seats:
    """The rows of a batch, and the queue for them: the first jobs of all images, then the second ones, and so on.

    Args:
        images: bool `(images,)`, the images that need jobs.
        jobs: per image.
        capacity: most rows.
        lengths: steps of each phase of a job.
        few: vacant rows are filled, or dropped, as soon as they are one in so many. None does so at once.

    Attributes:
        image, job, phase, step: what each row is at, int64 `(rows,)`.
        live: rows that are occupied.
    """

    def __init__(
        self, images: NDArray[np.bool_], jobs: int, capacity: int, lengths: Sequence[int], few: int | None = None
    ) -> None:
        self.jobs, self.lengths, self._few = jobs, np.asarray(lengths), few
        self._broken, needed = ~images, np.flatnonzero(images)
        self._queue = np.stack([np.tile(needed, jobs), np.repeat(np.arange(jobs), len(needed))])
        rows = even(len(needed) * jobs, capacity)
        self.image, self.job, self.phase, self.step = np.zeros((4, rows), dtype=np.int64)
        self.live = np.zeros(rows, dtype=np.bool_)

    @property
    def ending(self) -> Rows:
        """Rows at the last step of their phase."""
        return self._live(self.step == self.lengths[self.phase])

    @property
    def judged(self) -> Rows:
        """Rows in the phase whose points count."""
        return self._live(self.phase == len(self.lengths) - 1)

    @property
    def leaving(self) -> Rows:
        """Rows at the last step of their last phase."""
        return np.asarray(self.ending & self.judged)

    @property
    def resumed(self) -> Rows:
        """Rows at the beginning of a phase that is not their first."""
        return self._live((self.step == 0) & (self.phase > 0))

    def admit(self) -> NDArray[np.int64]:
        """Give vacant rows to the next jobs in the queue, if enough rows are vacant; the rows that were given."""
        vacant = self._vacant()
        waiting = self._queue[:, ~self._broken[self._queue[0]]] if len(vacant) else self._queue
        rows = vacant[: waiting.shape[1]]
        (self.image[rows], self.job[rows]), self._queue = waiting[:, : len(rows)], waiting[:, len(rows) :]
        self.phase[rows] = self.step[rows] = 0
        self.live[rows] = True
        return rows

    def dismiss(self, images: NDArray[np.int64]) -> None:
        """These images are broken: their jobs leave."""
        self._broken[images] = True
        self.live &= ~self._broken[self.image]

    def move(self) -> None:
        """Go one step further: on to the next phase where one has ended, and out of the row after the last phase."""
        ending = self.ending
        self.live &= ~self.leaving
        self.step = np.where(self.live & ~ending, self.step + 1, 0)
        self.phase = np.where(self.live & ending, self.phase + 1, self.phase)

    def close(self) -> NDArray[np.int64] | None:
        """Drop vacant rows if no job waits and enough rows are vacant; the rows that were kept, or None for all."""
        if self._queue.shape[1] or not self.live.any() or not len(self._vacant()):
            return None
        rows = np.flatnonzero(self.live)
        self.image, self.job, self.phase, self.step = (a[rows] for a in (self.image, self.job, self.phase, self.step))
        self.live = self.live[rows]
        return rows

    def _live(self, rows: Rows) -> Rows:
        return np.asarray(self.live & rows)

    def _vacant(self) -> NDArray[np.int64]:
        """The vacant rows; none where they are too few."""
        vacant = np.flatnonzero(~self.live)
        least = max(1, len(self.live) // self._few) if self._few and self.live.any() else 1
        return vacant if len(vacant) >= least else vacant[:0]
