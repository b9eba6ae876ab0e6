"""Losses per sample, and the label arithmetic of DGAD. The method takes the mean.

P and Q are distributions over K classes for N samples, given as logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def kl(p_logits: Tensor, q_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(P‖Q) = sum_c P_c (log P_c - log Q_c), `(N, K)` and `(N, K)` to `(N,)`; both softened by `temperature`.

    This is the true divergence, with P's entropy. Without it the gradient is another one where P depends on the
    attacked image, as the teacher does in AdaAD and DGAD.
    """
    assert p_logits.shape == q_logits.shape, f"expected equal shapes, got {p_logits.shape} and {q_logits.shape}"
    if temperature != 1.0:
        p_logits, q_logits = p_logits / temperature, q_logits / temperature
    log_p, log_q = F.log_softmax(p_logits, dim=1), F.log_softmax(q_logits, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log S_y, `(N, K)` and int64 `(N,)` to `(N,)`; `smoothing` of the label's mass is shared by all K classes."""
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def soft_label(logits: Tensor, labels: Tensor, *, of_logits: float) -> Tensor:
    """Logarithm of `of_logits` softmax(logits) + (1 - `of_logits`) onehot(labels), `(N, K)`: logits of the mixture."""
    onehot = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    mixed = of_logits * F.softmax(logits, dim=1) + (1 - of_logits) * onehot
    return mixed.clamp(min=torch.finfo(mixed.dtype).tiny).log()


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the largest other one, `(N,)`; negative where the prediction is wrong."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - _without_label(logits, labels).amax(dim=1)


def predicted_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Where the first index of the largest logit is not the label, bool `(N,)`.

    DGAD's misclassification-aware partitioning (MAP; Park & Min, ECCV 2024, section 4.1) is this, of the teacher on
    clean images.
    """
    return logits.argmax(dim=1) != labels


def swap_label(logits: Tensor, labels: Tensor, where: Tensor) -> Tensor:
    """Exchange the label's logit with the largest other one in the rows `where`, `(N, K)`.

    DGAD's error-corrective label swapping (ELS; section 4.2). Swapping logits swaps the probabilities, since softmax
    commutes with permutations.
    """
    label = labels[:, None]
    rival = _without_label(logits, labels).argmax(dim=1, keepdim=True)
    of_label, of_rival = logits.gather(1, label), logits.gather(1, rival)
    chosen = where[:, None]
    swapped = logits.scatter(1, label, torch.where(chosen, of_rival, of_label))
    return swapped.scatter(1, rival, torch.where(chosen, of_label, of_rival))


def runner_up(logits: Tensor, labels: Tensor) -> Tensor:
    """The class with the largest logit other than the label, int64 `(N,)`."""
    return _without_label(logits, labels).argmax(dim=1)


def squared_gap(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """sum_c (P_c - Q_c)^2, `(N, K)` and `(N, K)` to `(N,)`."""
    return (F.softmax(p_logits, dim=1) - F.softmax(q_logits, dim=1)).square().sum(dim=1)


def _without_label(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -torch.inf)
