"""The rounds of the search: which ascents an image has in each, and where they start.

The numbers were chosen on small networks trained on digits and CIFAR-10, and are the same for every network.
"""

from dataclasses import dataclass
from typing import Literal

from evaluators.attacks.autoattack.stages import TARGETS

Start = Literal["clean", "uniform", "spread", "best"]


@dataclass(frozen=True)
class Round:
    """Ascents of every image that is still searched on.

    Attributes:
        name: of its draws.
        ranks: places of the target classes, in the order of promise; empty for one untargeted ascent.
        start: `clean`, the image itself; `uniform`, a random point of the ball; `spread`, a point that random weights
            of the logits lead to; `best`, the point of the lowest lead so far.
        steps: of each ascent.
        restart: promise is what earlier ascents came to, no longer what the clean image says.
        settles: the search of an image may stop after it.
        exact: in float32, whatever the precision of the search; images whose search has stopped have it too.
    """

    name: str
    ranks: tuple[int, ...]
    start: Start
    steps: int
    restart: bool = False
    settles: bool = False
    exact: bool = False


FIRST = (Round("untargeted", (), "clean", 10),)
TARGETED = (Round("near targets", (0, 1, 2), "clean", 15), Round("far targets", tuple(range(3, TARGETS)), "clean", 10))
RESTARTS = tuple(
    Round(f"restart {number}", (0, 1, 2), "spread" if number % 2 else "uniform", 20, restart=True, settles=True)
    for number in range(20)
)
CLOSING = (Round("closing", (0, 1), "best", 20, restart=True, exact=True),)
"""After a search in bf16, whose gradients lose small differences."""
