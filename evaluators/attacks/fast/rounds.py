"""The rounds of the search: which ascents each image has in them, and where they start."""

from dataclasses import dataclass
from typing import Literal

Start = Literal["clean", "uniform", "spread", "best"]


@dataclass(frozen=True)
class Round:
    """Ascents of every image that is still searched on.

    Attributes:
        name: of its draws.
        ranks: places of the target classes in the order of `Progress`; empty for one untargeted ascent.
        start: `clean`, the image itself; `uniform`, a random point of the ball; `spread`, a point that random weights of
            the logits lead to; `best`, the point of the lowest lead so far.
        steps: of each ascent.
        restart: the order of targets is that of the ascents so far, and the search may stop after this round.
    """

    name: str
    ranks: tuple[int, ...]
    start: Start
    steps: int
    restart: bool = False


FIRST = Round("first", (), "clean", 10)
EACH = (Round("near", (0, 1, 2), "clean", 15), Round("far", (3, 4, 5, 6, 7, 8), "clean", 15))
RESTARTS = 20
SPREAD = 5
"""Steps of a spread start."""


def restart(number: int) -> Round:
    """The restarts after all targets have been tried."""
    start: Start = "spread" if number % 2 else "uniform"
    return Round(f"restart {number}", (0, 1, 2), start, 20, restart=True)
