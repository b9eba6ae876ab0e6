"""Accuracy of a network in training, clean and under PGD, by which the best epoch is chosen."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from dgad_tk.ascent.folded import Inner, folded
from dgad_tk.ascent.inner_max import draw_noise, inner_max, start_point
from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.threat import ThreatModel
from dgad_tk.data import Split
from dgad_tk.data.augment import to_float
from dgad_tk.data.batches import on_device
from dgad_tk.distributed import across, world
from dgad_tk.draws import Draws


def accuracies(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    draws: Draws,
    *,
    device: torch.device,
    batch_size: int = 0,
    inner: Inner | None = None,
    between: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Clean accuracy and accuracy under PGD (cross-entropy, uniform start) with `threat.steps` steps of eps / 4.

    The model is used in eval mode and left as it is. The start noise is the same in every call, so that epochs compare.
    Each of several processes takes its share of the images, and all return the accuracy on all images.

    Args:
        batch_size: of all processes together; 0 for 256, or fewer images that are large.
        inner: how the model is run inside the attack; it is always judged in float32.
        between: called after each batch; what it raises ends the attack.
    """
    inner, here = inner or Inner(), world()
    batch_size = batch_size or split.at_once(256)
    attacked, judge = inner.view(model), folded(model)
    threat = ThreatModel.of(threat.norm, threat.eps, threat.steps)
    counts = torch.zeros(2, device=device, dtype=torch.float64)
    for positions in np.split(np.arange(len(split)), range(batch_size, len(split), batch_size)):
        positions = np.array_split(positions, here.size)[here.rank]
        images, labels, index = on_device(split, positions, device)
        x = to_float(images)
        noise = partial(draw_noise, draws, "selection", x.shape[1:], index)
        begin = start_point(x, threat, "uniform", noise, clip=True)
        with inner.context(device):
            x_adv = inner_max(lambda z, y=labels: cross_entropy(attacked(z), y), x, begin, threat)  # type: ignore[misc]
        with torch.no_grad():
            right = judge(x).argmax(dim=1) == labels
            counts += torch.stack([right.sum(), (right & (judge(x_adv).argmax(dim=1) == labels)).sum()])
        between()
    clean, robust = across(counts).tolist()
    return clean / len(split), robust / len(split)
