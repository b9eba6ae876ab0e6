"""Rows of probabilities, which a final Softmax or Sigmoid makes of logits."""

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor

from dgad_tk.artifacts.one_number import SIGMOID_ERROR
from dgad_tk.artifacts.predictor import Logits
from exporters.onnx_open.readings.reading import Reading, near, smallest, won_by
from exporters.onnx_read.parts import answer_step, computes, makers

SQUASHES: tuple[Literal["Softmax", "Sigmoid"], ...] = ("Softmax", "Sigmoid")


class Squash(Reading):
    """A final Softmax or Sigmoid. It keeps the order of the classes.

    Args:
        tensor: the logits before it.
        kind: which of the two.
        step: of the probabilities, where they are quantised; else 0.
        dtype: of the file's answers.
    """

    probabilities = True

    def __init__(
        self,
        tensor: str,
        kind: Literal["Softmax", "Sigmoid"],
        step: float = 0.0,
        dtype: np.dtype[Any] = np.dtype(np.float32),  # noqa: B008 - a dtype cannot be changed
    ) -> None:
        remark = f"gradients come from the logits before the final {kind}, verdicts from the file's own answer"
        super().__init__(tensor, remark=remark)
        self.kind, self.smallest = kind, smallest(dtype, step)
        # The small answers of a Softmax have small errors; those of a Sigmoid have not.
        self.error = SIGMOID_ERROR if kind == "Sigmoid" else 0.0
        # Between the smallest steps of quantised probabilities their logarithm doubles.
        self.least_step = math.log(2) if step else 0.0

    def logits_of(self, rows: NDArray[Any]) -> Logits:
        """A file's probabilities `(N, K)` as logarithms, with the same first largest entry in each row."""
        return won_by(self._logarithms(torch.from_numpy(rows.astype(np.float32))).numpy(), rows)

    def finish(self, logits: Tensor) -> Tensor:
        return self._logarithms(self._probabilities(logits))

    def fitted(self, values: Tensor, rows: NDArray[Any]) -> "Squash | None":
        return self if near(self._probabilities(values), torch.from_numpy(rows.astype(np.float32))) else None

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1) if self.kind == "Softmax" else logits.sigmoid()

    def _logarithms(self, probabilities: Tensor) -> Tensor:
        return probabilities.clamp(min=self.smallest).log()


def find_squash(model: ModelProto, output: str, dtype: np.dtype[Any]) -> Squash | None:
    """The Softmax or Sigmoid that makes `output`, whose numbers are of `dtype`; None if neither does."""
    made_by, step = makers(model.graph), answer_step(model, output)
    node = computes(made_by, output)
    if node is not None and step:
        quantiser = computes(made_by, node.input[0])
        if quantiser is None or quantiser.op_type != "QuantizeLinear":
            return None
        node = computes(made_by, quantiser.input[0])
    kind = next((each for each in SQUASHES if node is not None and node.op_type == each), None)
    return None if node is None or kind is None else Squash(node.input[0], kind, step, dtype)
