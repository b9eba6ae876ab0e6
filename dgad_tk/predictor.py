"""What the evaluator attacks: images to logits by the deployed runtime, and gradients where there are any."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dgad_tk.artifact import Artifact

Images = NDArray[np.float32]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Predictor:
    """An opened model file.

    Attributes:
        predict: float32 images `(N, C, H, W)` in [0, 1] to float32 logits `(N, K)`, by the runtime that is deployed.
            This is the judge: an adversarial example counts when these logits are wrong.
        module: a differentiable torch module of the same function, in eval mode, for the search; None for a black box.
        input_shape: (C, H, W).
        classes: K.
        format: row of the EXPORTERS table, or "safetensors".
        path: the file it came from.
        sha256: of that file.
        artifact: the file's metadata record, where it carries one.
        runtime: what `predict` runs on, for the results ("onnxruntime 1.31.1 CPUExecutionProvider").
    """

    predict: Callable[[Images], Logits] = field(repr=False)
    module: nn.Module | None = field(repr=False)
    input_shape: tuple[int, int, int]
    classes: int
    format: str
    path: Path | None = None
    sha256: str = ""
    artifact: Artifact | None = field(default=None, repr=False)
    runtime: str = "torch"
