"""Parity of an exported file with its source. An export is not done until it has been compared."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dgad_tk.config import ThreatModel
from dgad_tk.inner_max import inner_max
from dgad_tk.losses import cross_entropy
from dgad_tk.predictor import Images, Logits, Predictor

TOLERANCE = 1e-4
"""On logits, relative: max|difference| <= TOLERANCE * max(1, max|logit|)."""
BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Parity:
    """What the comparison found, over clean images and PGD images made on the source.

    Attributes:
        max_abs_diff: largest difference of any logit.
        relative: the same over max(1, largest logit).
        agreement: share of equal predictions among images whose two largest logits lie further apart than the
            tolerance; nearer than that, either answer is right.
        compared: number of images.
    """

    max_abs_diff: float
    relative: float
    agreement: float
    compared: int

    @property
    def passed(self) -> bool:
        # A NaN compares false, so it fails.
        return self.relative <= TOLERANCE and self.agreement == 1.0

    def __str__(self) -> str:
        return (
            f"max |difference| {self.max_abs_diff:.2g} ({self.relative:.2g} relative, allowed {TOLERANCE:g}), "
            f"{self.agreement:.1%} equal predictions on {self.compared} images, clean and PGD, batches "
            + ", ".join(map(str, BATCHES))
        )


def verify(source: nn.Module, exported: Predictor, images: Images, threat: ThreatModel) -> Parity:
    """Compare `exported` with `source` at several batch sizes on clean and on adversarial images.

    Args:
        source: the module that was exported, in eval mode, on the CPU.
        images: float32 `(N, C, H, W)` in [0, 1], N >= 10.
        threat: for the PGD images.
    """
    need = sum(BATCHES)
    if len(images) < need:
        raise ValueError(f"expected at least {need} images, got {len(images)}")
    clean = torch.from_numpy(images[:need])
    with torch.no_grad():
        predicted = source(clean).argmax(dim=1)
    adversarial = inner_max(lambda z: cross_entropy(source(z), predicted), clean, clean, threat)
    ours: list[Logits] = []
    theirs: list[Logits] = []
    for batch in (clean, adversarial):
        start = 0
        for size in BATCHES:
            part = batch[start : start + size]
            start += size
            with torch.no_grad():
                ours.append(source(part).numpy())
            theirs.append(exported.predict(part.numpy()))
    return compare_logits(np.concatenate(ours), np.concatenate(theirs))


def compare_logits(reference: Logits, other: Logits) -> Parity:
    """Parity of two sets of logits `(N, K)` for the same images."""
    if reference.shape != other.shape or not np.isfinite(other).all():
        return Parity(float("nan"), float("nan"), 0.0, len(reference))
    difference = float(np.abs(reference - other).max())
    scale = max(1.0, float(np.abs(reference).max()))
    top = np.sort(reference, axis=1)
    clear = top[:, -1] - top[:, -2] > TOLERANCE * scale
    equal = reference.argmax(axis=1) == other.argmax(axis=1)
    return Parity(difference, difference / scale, float(equal[clear].mean()) if clear.any() else 1.0, len(reference))
