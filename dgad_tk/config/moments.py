"""Moments of a run, which settings name as an epoch or as a share of the epochs."""

from typing import Annotated

from pydantic import Field

When = Annotated[float, Field(ge=0)]
"""A moment of a run: below 1 a share of its epochs, else an epoch."""


def epoch_of(when: float, epochs: int) -> int:
    """The epoch, from 0, that begins at `when`."""
    return round(when * epochs) if when < 1 else round(when)


def begun_at(when: float, epochs: int) -> int:
    """The same of what has to happen in a run: a share of its epochs begins with the last one at the latest.

    So an average over the last quarter of two epochs is that of the second one, and not of none.
    """
    return min(epoch_of(when, epochs), epochs - 1) if when < 1 else epoch_of(when, epochs)
