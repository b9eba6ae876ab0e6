"""Which rows of MODELS stand for all of them where each row would cost minutes."""

import torch

from dgad_tk.models import MODELS, count_parameters


def smallest_rows() -> list[str]:
    """The row with the fewest parameters of every class of networks; the others are the same code with more layers."""
    smallest: dict[type, tuple[int, str]] = {}
    for name, build in MODELS.items():
        with torch.device("meta"):
            net = build(3, 10)
        size = (count_parameters(net), name)
        smallest[type(net)] = min(size, smallest.get(type(net), size))
    return [name for _, name in smallest.values()]


SMALLEST = smallest_rows()
