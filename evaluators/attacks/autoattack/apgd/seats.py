"""Which ascent sits in which row of a batch, and which ones wait: bookkeeping of integers, on the host."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.bool_]
"""A mask over the rows."""
_FEW = 16
"""Vacant rows are filled or dropped when they are one of so many: either costs as much as the updates of a step."""


def even(jobs: int, most: int) -> int:
    """Rows of a batch, at most `most`, that spread jobs of one length evenly over as few batches.

    252 jobs in rows for 250 would leave two that go on alone, at several times the price of an image.
    """
    batches = max(1, -(-jobs // most))
    return max(1, -(-jobs // batches))


class Seats:
    """A batch that stays full: an image's ascents leave when one of them breaks it, and others take their rows.

    Args:
        images: number of images.
        jobs: ascents per image. The queue holds the first ascents of all images, then the second of all, and so on.
        capacity: most rows. There are fewer where that spreads the ascents evenly over batches.
        lengths: steps of each phase of an ascent.

    Attributes:
        image, job, phase, step: what each row is at, int64 `(rows,)`.
        live: rows that somebody sits in.
        broken: images that need no more ascents, `(images,)`.
    """

    def __init__(self, images: int, jobs: int, capacity: int, lengths: Sequence[int]) -> None:
        self.jobs, self.capacity, self.lengths = jobs, capacity, np.asarray(lengths)
        self._queue = np.stack([np.tile(np.arange(images), jobs), np.repeat(np.arange(jobs), images)])
        self.broken = np.zeros(images, dtype=np.bool_)
        self.image, self.job, self.phase, self.step = np.zeros((4, 0), dtype=np.int64)
        self.live = np.zeros(0, dtype=np.bool_)

    @property
    def ending(self) -> Rows:
        """Rows at the last point of their phase."""
        return self._where(self.step == self.lengths[self.phase])

    @property
    def judged(self) -> Rows:
        """Rows in the phase whose points count."""
        return self._where(self.phase == len(self.lengths) - 1)

    @property
    def leaving(self) -> Rows:
        """Rows at the last point of their last phase."""
        return np.asarray(self.ending & self.judged)

    @property
    def resumed(self) -> Rows:
        """Rows at the beginning of a phase that is not their first."""
        return self._where((self.step == 0) & (self.phase > 0))

    def admit(self) -> NDArray[np.int64]:
        """Rows that now go to the next in the queue, if it pays. The first time they are all there are."""
        first = len(self.live) == 0
        if first:
            self.capacity = even(int((~self.broken[self._queue[0]]).sum()), self.capacity)
        vacant = np.arange(self.capacity) if first else np.flatnonzero(~self.live)
        if len(vacant) < self._few and self.live.any():
            return vacant[:0]
        waiting = ~self.broken[self._queue[0]]
        image, job = self._queue[:, waiting][:, : len(vacant)]
        self._queue = self._queue[:, waiting][:, len(vacant) :]
        rows = vacant[: len(image)]
        if first:
            self.image, self.job, self.phase, self.step = np.zeros((4, len(rows)), dtype=np.int64)
            self.live = np.zeros(len(rows), dtype=np.bool_)
        self.image[rows], self.job[rows] = image, job
        self.phase[rows] = self.step[rows] = 0
        self.live[rows] = True
        return rows

    def dismiss(self, images: NDArray[np.int64]) -> None:
        """These images are broken: their ascents leave."""
        self.broken[images] = True
        self.live &= ~self.broken[self.image]

    def move(self) -> None:
        """One step further: to the next phase where one has ended, out of the row where it was the last."""
        ending = self.ending
        self.live &= ~self.leaving
        self.step = np.where(self.live & ~ending, self.step + 1, 0)
        self.phase = np.where(self.live & ending, self.phase + 1, self.phase)

    def close(self) -> NDArray[np.int64] | None:
        """Rows to keep, where nobody waits and enough are vacant to drop them."""
        vacant = len(self.live) - int(self.live.sum())
        if self._queue.shape[1] or vacant < self._few or not self.live.any():
            return None
        rows = np.flatnonzero(self.live)
        self.image, self.job, self.phase, self.step = (a[rows] for a in (self.image, self.job, self.phase, self.step))
        self.live = self.live[rows]
        return rows

    def _where(self, rows: Rows) -> Rows:
        return np.asarray(self.live & rows)

    @property
    def _few(self) -> int:
        return max(1, len(self.live) // _FEW)
