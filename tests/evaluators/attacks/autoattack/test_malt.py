"""The order of target classes."""

import math

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from dgad_tk.config.threat import Norm
from evaluators.attacks.autoattack.malt import target_order
from evaluators.attacks.native import Victim

SHAPE = (3, 2, 2)


def _victim(net: nn.Module, classes: int) -> Victim:
    return Victim(PyTorchClassifier(net, nn.CrossEntropyLoss(), SHAPE, classes, clip_values=(0, 1)))


def _linear(classes: int) -> tuple[nn.Module, Tensor]:
    weights = torch.randn(12, classes, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, classes, bias=False))
    net[1].weight.data = weights.T.contiguous()
    return net, weights


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", math.inf)])
def test_of_a_linear_network_the_order_is_that_of_the_distances_to_its_borders(norm: Norm, dual: float) -> None:
    net, weights = _linear(6)
    x = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    logits = (x.flatten(1) @ weights).numpy()
    y = logits.argmax(axis=1)
    order = target_order(_victim(net, 6), x, torch.from_numpy(y), norm, 4)
    for row, label in enumerate(y):
        away = {
            j: (logits[row, label] - logits[row, j]) / np.linalg.norm((weights[:, j] - weights[:, label]).numpy(), dual)
            for j in range(6)
            if j != label
        }
        assert order[row].tolist() == sorted(away, key=lambda j: away[j])[:4]


def test_an_image_has_the_same_order_in_any_batch_and_only_likely_classes_are_candidates() -> None:
    net, weights = _linear(6)
    x = torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(1))
    logits = x.flatten(1) @ weights
    y, victim = logits.argmax(dim=1), _victim(net, 6)
    whole = target_order(victim, x, y, "linf", 5, candidates=3)
    assert whole.shape == (7, 3)
    for row in range(7):
        assert torch.equal(
            target_order(victim, x[row : row + 1], y[row : row + 1], "linf", 5, candidates=3)[0], whole[row]
        )
        assert set(whole[row].tolist()) == set(logits[row].topk(4).indices[1:].tolist())
    assert torch.equal(target_order(victim, x, y, "linf", 5, candidates=3, batch_size=2), whole)


class _Deaf(nn.Module):
    """Two logits change with the image, two do not."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(dim=1)
        return torch.stack([total, total - 1, total - 20, total * 0.5], dim=1)


def test_a_class_without_a_gradient_comes_last_in_the_order_of_logits() -> None:
    x = torch.full((1, *SHAPE), 0.5)  # logits 6, 5, -14, 3; only class 3 moves against class 0
    assert target_order(_victim(_Deaf(), 4), x, torch.tensor([0]), "linf", 3).tolist() == [[3, 1, 2]]
