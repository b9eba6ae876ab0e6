"""Accuracy of a network in training, clean and under PGD, by which the best epoch is chosen."""

from functools import partial

import numpy as np
import torch
from torch import nn

from dgad_tk.batches import draw_noise, fetch
from dgad_tk.config import ThreatModel
from dgad_tk.data import Split
from dgad_tk.data.augment import to_float
from dgad_tk.draws import Draws
from dgad_tk.fold import folded
from dgad_tk.inner_max import inner_max, start_point
from dgad_tk.losses import cross_entropy


def accuracies(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    draws: Draws,
    *,
    device: torch.device,
    batch_size: int = 256,
) -> tuple[float, float]:
    """Clean accuracy and accuracy under PGD (cross-entropy, uniform start) with `threat.steps` steps of eps / 4.

    The model is used in eval mode and left as it is. The start noise is the same at every call, so that epochs compare.
    """
    model = folded(model)
    threat = ThreatModel.of(threat.norm, threat.eps, threat.steps)
    clean = robust = 0
    for start in range(0, len(split), batch_size):
        positions = np.arange(start, min(start + batch_size, len(split)))
        images, labels, index = fetch(split, positions, device)
        x = to_float(images)
        noise = partial(draw_noise, draws, "selection", x.shape[1:], index)
        begin = start_point(x, threat, "uniform", noise, clip=True)
        x_adv = inner_max(lambda z, y=labels: cross_entropy(model(z), y), x, begin, threat)  # type: ignore[misc]
        with torch.no_grad():
            right = model(x).argmax(dim=1) == labels
            clean += int(right.sum())
            robust += int((right & (model(x_adv).argmax(dim=1) == labels)).sum())
    return clean / len(split), robust / len(split)
