"""Rows of one number, which tells two classes apart: a logit, or the probability of class 1.

The rule is that of `dgad_tk/artifacts/one_number.py`: the answer is class 1 above 0, or above 0.5, and else class 0.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from dgad_tk.artifacts.one_number import LOGIT, PROBABILITY, SIGMOID_ERROR, log_pair
from dgad_tk.artifacts.predictor import Logits
from exporters.onnx_open.readings.endings import Ending, endings_before, levels
from exporters.onnx_open.readings.ranges import is_probability, value_range
from exporters.onnx_open.readings.reading import Reading, near, smallest, won_by
from exporters.onnx_read.parts import answer_step, computes, makers

QUANTISED_STEPS = 2
"""By how many quantisation steps a probability may be off: each quantiser before it may round to either side."""


@dataclass(frozen=True)
class Meaning:
    """What the one number of each image counts for.

    Attributes:
        probability: it is a probability of class 1, and not a logit.
        scale, offset: of quantised numbers q, (q - offset) * scale counts; 1 and 0 for floats.
        smallest: what a smaller probability counts as.
        error: how far a probability may be off by rounding.
        low, high: bounds of a probability.
    """

    probability: bool
    scale: float
    offset: float
    smallest: float
    error: float
    low: float
    high: float

    def numbers(self, rows: NDArray[Any]) -> NDArray[np.floating[Any]]:
        """What the file's own rows count for, in its own double precision or in float32, `(N,)`."""
        flat: NDArray[np.floating[Any]] = rows.reshape(-1)
        if flat.dtype != np.float64:
            flat = flat.astype(np.float32)
        return np.asarray((flat - self.offset) * self.scale)


class OneNumber(Reading):
    """One number per image, read as two classes.

    Args:
        meaning: of the number.
        ending: where gradients come from.
    """

    def __init__(self, meaning: Meaning, ending: Ending) -> None:
        own = "" if ending.kind == "probability" else ", verdicts from the file's own answer"
        remark = f"gradients come from {ending.place}{own}" if meaning.probability else ""
        super().__init__(ending.tensor, PROBABILITY if meaning.probability else LOGIT, remark)
        self.meaning, self.ending = meaning, ending
        self.probabilities, self.error = meaning.probability, meaning.error if meaning.probability else 0.0

    def logits_of(self, rows: NDArray[Any]) -> Logits:
        """Logits `(N, 2)`, or the logarithms of probabilities."""
        numbers = self.meaning.numbers(rows)
        if not self.probabilities:
            pairs = np.stack([np.zeros_like(numbers), numbers], axis=1)
            return won_by(pairs.astype(np.float32), pairs)
        logs = log_pair(torch.from_numpy(numbers.astype(np.float32)), self.meaning.smallest).numpy()
        return won_by(logs, np.stack([1 - numbers, numbers], axis=1))

    def head(self, net: nn.Module) -> nn.Module:
        return AtEnd(net, self.ending)

    def finish(self, logits: Tensor) -> Tensor:
        probabilities = self.ending.probability(logits).clamp(self.meaning.low, self.meaning.high)
        return log_pair(probabilities, self.meaning.smallest)

    def fitted(self, values: Tensor, rows: NDArray[Any]) -> "OneNumber | None":
        answers = torch.from_numpy(self.meaning.numbers(rows).astype(np.float32))
        ending = self.ending.placed(values, answers)
        if ending is None or not near(ending.probability(ending.logits(values)), answers):
            return None
        return OneNumber(self.meaning, ending)


class AtEnd(nn.Module):
    """Logits `(N, 2)` of a module that gives the tensor of an ending."""

    def __init__(self, net: nn.Module, ending: Ending) -> None:
        super().__init__()
        self.net, self.ending = net, ending

    def forward(self, x: Tensor) -> Tensor:
        return self.ending.logits(self.net(x))


def readings_of_one_number(model: ModelProto, output: str, kind: np.dtype[Any]) -> list[Reading]:
    """How the one number of `output` may be read: what it means, from each value that gradients may come from.

    Args:
        kind: type of its numbers.

    Returns:
        The best first, and that of the output itself last.
    """
    made_by = makers(model.graph)
    scale, offset, name, step = 1.0, 0.0, output, answer_step(model, output)
    node = computes(made_by, output)
    if node is not None and node.op_type == "QuantizeLinear":  # integers come out
        scale, offset = levels(model, node.input[1:3])
        name, step = node.input[0], scale
    elif node is not None and node.op_type.startswith("QLinear") and len(node.input) >= 5:
        scale, offset = levels(model, node.input[3:5])
        step = scale
    probability = is_probability(model, name)
    low, high = value_range(model, name) if probability else (0.0, 1.0)
    floats = np.finfo(kind if kind.kind == "f" else np.float32)
    error = max(SIGMOID_ERROR, float(floats.eps), QUANTISED_STEPS * step)
    meaning = Meaning(probability, scale, offset, smallest(kind, step), error, max(0.0, low), min(1.0, high))
    own = Ending(output, "sigmoid", "probability" if probability else "logit", scale, offset)
    before = endings_before(model, output) if probability else ()
    return [OneNumber(meaning, ending) for ending in (*before, own)]
