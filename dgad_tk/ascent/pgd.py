"""PGD images on which an export is compared with its source. The evaluators measure robustness, this does not."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dgad_tk.ascent.folded import folded
from dgad_tk.ascent.inner_max import inner_max
from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.threat import ThreatModel

BATCH = 64


def pgd_on(model: nn.Module, images: NDArray[np.float32], threat: ThreatModel) -> NDArray[np.float32]:
    """PGD from `images` against the model's own predictions on them, float32 of the same shape.

    Args:
        model: in eval mode, on the CPU.
        images: `(N, C, H, W)` in [0, 1].
        threat: norm, radius and steps.
    """
    view = folded(model)
    found = [np.zeros((0, *images.shape[1:]), dtype=np.float32)]
    for start in range(0, len(images), BATCH):
        x = torch.from_numpy(images[start : start + BATCH])
        with torch.no_grad():
            predicted = view(x).argmax(dim=1)
        found.append(inner_max(lambda z, y=predicted: cross_entropy(view(z), y), x, x, threat).numpy())  # type: ignore[misc]
    return np.concatenate(found)
