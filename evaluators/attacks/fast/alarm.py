"""The alarm for masked gradients: random search that knows no gradient must not get further than gradients do."""

import math

from torch import Tensor

from dgad_tk.draws import Draws

SHARE, LEAST = 0.1, 8
"""The share of the images left that random search tries, and the fewest."""
NEARER = 0.1
"""It may come nearer to success than gradients on up to this share of them."""
FIRED = (
    "gradients hide weakness: random search got further than they did, so Square attacked every image that they had "
    "left, with all its queries"
)


def tried(draws: Draws, index: Tensor) -> Tensor:
    """Places of the images that the alarm tries, int64: those of the lowest draws among `index`, int64 `(N,)`."""
    count = min(len(index), max(LEAST, math.ceil(SHARE * len(index))))
    draw = draws.uniform("fast alarm", (1,), index=index)[:, 0]
    return draw.argsort(stable=True)[:count].sort().values


def goes_off(broken: Tensor, by_random: Tensor, by_gradients: Tensor) -> bool:
    """Whether random search does better than gradients.

    Args:
        broken: images that it broke and gradients had left, bool `(n,)`.
        by_random: the label's lowest lead that it found, by the deployed runtime, `(n,)`.
        by_gradients: the same of the gradients.
    """
    return bool(broken.any()) or int((by_random < by_gradients).sum()) > NEARER * len(broken)
