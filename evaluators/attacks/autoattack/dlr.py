"""Difference of logits ratio: a loss that does not change when logits are shifted or scaled."""

import torch
from torch import Tensor

from dgad_tk.ascent.losses import margin

DLR_CLASSES = 3
"""The untargeted loss divides by a difference with the third largest logit."""
TARGETED_DLR_CLASSES = 4
"""The targeted one divides by a difference with the third and the fourth."""
_TIE = 1e-12
"""Added to the divisor, as in the authors' code. Where the largest logits tie, the loss is large and finite."""


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """-(z_y - max_{i != y} z_i) / (z_(1) - z_(3)), `(N, K)` and int64 `(N,)` to `(N,)`; positive where wrong.

    Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690, equation 6; z_(k) is the k-th largest logit.

    Raises:
        ValueError: fewer than three classes.
    """
    _check(logits, DLR_CLASSES, "DLR")
    largest = logits.topk(3, dim=1).values
    return -margin(logits, labels) / (largest[:, 0] - largest[:, 2] + _TIE)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), `(N, K)` and int64 `(N,)` twice to `(N,)`.

    Croce & Hein, ICML 2020, equation 7: to be maximised, towards the class `targets`.

    Raises:
        ValueError: fewer than four classes.
    """
    _check(logits, TARGETED_DLR_CLASSES, "targeted DLR")
    largest = logits.topk(4, dim=1).values
    pair = logits.gather(1, torch.stack([labels, targets], dim=1))
    return (pair[:, 1] - pair[:, 0]) / (largest[:, 0] - 0.5 * (largest[:, 2] + largest[:, 3]) + _TIE)


def _check(logits: Tensor, least: int, name: str) -> None:
    if logits.shape[1] < least:
        raise ValueError(f"the {name} loss needs at least {least} classes, got {logits.shape[1]}")
