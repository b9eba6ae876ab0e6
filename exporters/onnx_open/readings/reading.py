"""What the rows of a file's output mean. Here they are logits; `squash.py` and `one_number.py` have the other meanings.

A reading says two things: what the rows that the file gives count for, and from which value of its graph gradients
come. For a file that ends in Softmax, both are one formula from two ends:

    rows of the file    -> logits_of          -> the logarithms of its probabilities, by which it is judged
    values of `tensor`  -> head -> logits -> finish -> the same, by the twin
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dgad_tk.artifacts.predictor import Logits

TOLERANCE = 1e-2
"""Largest difference of probabilities at which what looks like the end of a graph is taken for it."""


class Reading:
    """Rows that are logits, as they are.

    Args:
        tensor: of the graph, from which gradients come: the output itself, or a value before it.
        note: on what the rows mean; empty for logits.
        remark: on where gradients come from.

    Attributes:
        probabilities: the rows are probabilities. Their logarithms stand for logits.
        error: absolute error of such a probability.
        least_step: the quantisation step of what `logits_of` gives, as far as the end of the graph sets it.
    """

    probabilities = False
    error = 0.0
    least_step = 0.0

    def __init__(self, tensor: str, note: str = "", remark: str = "") -> None:
        self.tensor, self.note, self.remark = tensor, note, remark

    def logits_of(self, rows: NDArray[Any]) -> Logits:
        """The file's own rows `(N, K)` as float32 logits, with the same first largest entry in each row."""
        exact = np.can_cast(rows.dtype, np.float32)
        return np.asarray(rows, dtype=np.float32) if exact else won_by(rows.astype(np.float32), rows)

    def head(self, net: nn.Module) -> nn.Module:
        """The module that gives logits `(N, K)`, of one that gives `tensor`."""
        return net

    def finish(self, logits: Tensor) -> Tensor:
        """From the logits of `head` to what `logits_of` gives."""
        return logits

    def fitted(self, values: Tensor, rows: NDArray[Any]) -> "Reading | None":
        """This reading, completed by what images tell; None if `tensor` does not lead to the rows of the file.

        Args:
            values: of `tensor`, for some images.
            rows: of the file, for the same.
        """
        return self


def won_by(logits: Logits, rows: NDArray[Any]) -> Logits:
    """`logits`, in which the first largest entry of each row is that of `rows`, wherever rounding has made it a tie.

    Neighbouring numbers can have one logarithm, and numbers of double precision one float32. The verdict is the file's.

    Args:
        logits: of the same order as `rows`, up to rounding. They are changed.
    """
    winner = rows.argmax(axis=1)
    (tied,) = np.nonzero(logits.argmax(axis=1) != winner)
    logits[tied, winner[tied]] = np.nextafter(logits[tied].max(axis=1), np.float32(np.inf))
    return logits


def near(ours: Tensor, theirs: Tensor) -> bool:
    """Whether both are the same probabilities."""
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= TOLERANCE)


def smallest(kind: np.dtype[Any], step: float) -> float:
    """What a smaller probability counts as: the smallest number of the type or of float32, or the quantisation step."""
    floats = np.finfo(kind if kind.kind == "f" else np.float32)
    return max(step, float(floats.tiny), torch.finfo(torch.float32).tiny)
