"""JSMA against ART's on small networks, and by what it may change."""

import numpy as np
import pytest
import torch
from art.attacks.evasion import SaliencyMapMethod
from art.estimators.classification import PyTorchClassifier
from shared import Victim
from torch import nn
from victims import as_torch

from evaluators.attacks.jsma import SaliencyMap
from evaluators.target.estimators import Counted, to_estimator

pytestmark = pytest.mark.portable

SHAPE = (2, 6, 6)


@pytest.fixture
def smooth() -> PyTorchClassifier:
    """A network without ReLU, so that no two gradients are equal."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 5)).requires_grad_(False)
    net[3].weight.mul_(4)
    return estimator_of(net, SHAPE, 5)


def estimator_of(net: nn.Module, shape: tuple[int, ...], classes: int) -> PyTorchClassifier:
    return PyTorchClassifier(
        net, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=classes, clip_values=(0.0, 1.0)
    )


def images(n: int = 24) -> np.ndarray:
    x = np.random.default_rng(0).random((n, *SHAPE), dtype=np.float32)
    x[:, :, :2] = 0
    x[:, :, 4:] = 1
    return x


@pytest.mark.parametrize(("theta", "gamma"), [(1.0, 0.1), (1.0, 0.5), (0.3, 0.2), (-0.4, 0.3), (-1.0, 1.0)])
def test_equals_art_for_the_same_targets(smooth: PyTorchClassifier, theta: float, gamma: float) -> None:
    x = images()
    target = (smooth.predict(x).argmax(1) + np.arange(len(x))) % 5  # some are reached from the start
    expected = SaliencyMapMethod(smooth, theta=theta, gamma=gamma, batch_size=8, verbose=False).generate(x, target)
    found = SaliencyMap(smooth, theta=theta, gamma=gamma, targeted=True, batch_size=7).generate(x, target)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    changed = (found != x).any(axis=(1, 2, 3))
    assert changed.any()
    assert not changed.all()


def test_equals_art_on_a_trained_network(victim: Victim) -> None:
    """With BatchNorm, which ours folds: rounding may turn the order of two gradients, and hardly ever does."""
    net, x, y = victim
    estimator = estimator_of(net, (1, 8, 8), 10)
    logits = estimator.predict(x)
    right = logits.argmax(1) == y
    runner_up = np.argsort(logits, axis=1)[:, -2]
    reference = SaliencyMapMethod(estimator, theta=1.0, gamma=0.1, batch_size=48, verbose=False)
    expected = reference.generate(x[right], runner_up[right])
    found = SaliencyMap(estimator).generate(x[right], y[right])  # the runner-up by itself
    equal = (found == expected).all(axis=(1, 2, 3))
    assert equal.mean() >= 0.95
    broken = estimator.predict(found).argmax(1) != y[right]
    assert broken.any()


def test_gamma_bounds_what_changes(smooth: PyTorchClassifier) -> None:
    x = images()
    labels = smooth.predict(x).argmax(1)
    for gamma in (0.05, 0.25):
        found = SaliencyMap(smooth, gamma=gamma, theta=0.2).generate(x, labels)
        changed = (found != x).sum(axis=(1, 2, 3))
        assert changed.max() <= gamma * x[0].size + 2
        assert changed.max() > 0
        assert found.min() >= 0
        assert found.max() <= 1


def test_images_leave_when_they_are_done(victim: Victim) -> None:
    """One pass an iteration and no more: three features of 64 are two iterations."""
    net, x, y = victim
    right = (net(torch.from_numpy(x)).argmax(1).numpy() == y).nonzero()[0]
    counted = Counted(net)
    attack = SaliencyMap(to_estimator(as_torch(net, (1, 8, 8)), module=counted), gamma=3 / 64, batch_size=16)
    found = attack.generate(x[right], y[right])
    assert 0 < counted.backwards <= 2 * len(right)
    pairs = (found != x[right]).sum(axis=(1, 2, 3))
    assert set(pairs.tolist()) <= {1, 2, 3, 4}
    # A clean image that is wrong already is at its runner-up's class, and stays.
    wrong = np.setdiff1d(np.arange(len(x)), right)
    np.testing.assert_array_equal(attack.generate(x[wrong], y[wrong]), x[wrong])


def test_batch_size_changes_nothing(smooth: PyTorchClassifier) -> None:
    x = images()
    labels = smooth.predict(x).argmax(1)
    whole = SaliencyMap(smooth, gamma=0.3).generate(x, labels)
    parts = SaliencyMap(smooth, gamma=0.3, batch_size=5).generate(x[::-1], labels[::-1])
    np.testing.assert_allclose(parts[::-1], whole, atol=1e-6)


def test_arguments_are_checked(smooth: PyTorchClassifier) -> None:
    with pytest.raises(ValueError, match="expected theta"):
        SaliencyMap(smooth, theta=0.0)
    with pytest.raises(ValueError, match="expected gamma"):
        SaliencyMap(smooth, gamma=1.5)
    with pytest.raises(ValueError, match="needs the classes to reach"):
        SaliencyMap(smooth, targeted=True).generate(images())
