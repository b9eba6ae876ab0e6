"""Losses against torch's own and written-out numbers."""

import torch
import torch.nn.functional as F

from dgad_tk.ascent.losses import cross_entropy, kl, margin, predicted_wrong, swap_label

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 1.0], [3.0, 3.0, 1.0]])
LABELS = torch.tensor([0, 0, 1])


def test_kl_equals_torch() -> None:
    p, q = torch.randn(5, 4), torch.randn(5, 4)
    expected = F.kl_div(F.log_softmax(q, 1), F.log_softmax(p, 1), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(kl(p, q), expected)
    assert kl(p, p).abs().max() < 1e-6


def test_kl_has_the_entropy_term() -> None:
    """Where the reference depends on the input, its gradient is not that of the cross-entropy."""
    p = torch.randn(3, 4, requires_grad=True)
    (with_entropy,) = torch.autograd.grad(kl(p, torch.zeros(3, 4)).sum(), p)
    (without,) = torch.autograd.grad(-(p.softmax(1) * torch.zeros(3, 4).log_softmax(1)).sum(), p)
    assert with_entropy.abs().max() > 1e-3
    assert without.abs().max() < 1e-6


def test_cross_entropy_is_per_sample() -> None:
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS).mean(), F.cross_entropy(LOGITS, LABELS))
    assert cross_entropy(LOGITS, LABELS).shape == (3,)


def test_margin_and_partition() -> None:
    assert margin(LOGITS, LABELS).tolist() == [1.0, -1.0, 0.0]
    # A tie goes to the first index, as in the released code: the third row predicts class 0.
    assert predicted_wrong(LOGITS, LABELS).tolist() == [False, True, True]


def test_swap_exchanges_label_and_rival_where_asked() -> None:
    where = torch.tensor([False, True, True])
    assert swap_label(LOGITS, LABELS, where).tolist() == [[2.0, 1.0, 0.0], [1.0, 0.0, 1.0], [3.0, 3.0, 1.0]]
    assert not predicted_wrong(swap_label(LOGITS, LABELS, where)[:2], LABELS[:2]).any()


def test_swapping_logits_swaps_probabilities() -> None:
    logits, labels = torch.randn(50, 7), torch.randint(7, (50,))
    wrong = predicted_wrong(logits, labels)
    swapped = swap_label(logits, labels, wrong).softmax(1)
    torch.testing.assert_close(swapped.sort(1).values, logits.softmax(1).sort(1).values)
    assert (swapped.argmax(1) == labels).all()
