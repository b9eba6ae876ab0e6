"""Carlini & Wagner's L2 attack against foolbox's, and on models whose nearest adversarial image is known."""

from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from art.attacks.evasion import CarliniL2Method
from art.estimators.classification import PyTorchClassifier
from shared import Victim
from torch import Tensor, nn
from victims import SHAPE, TwoClassLinear, as_torch, linear_split

from evaluators.attacks.cw2 import CarliniWagnerL2
from evaluators.target.estimators import Counted, to_estimator

pytestmark = pytest.mark.portable


def art_estimator(net: nn.Module, shape: tuple[int, ...], classes: int = 10) -> PyTorchClassifier:
    return PyTorchClassifier(
        net, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=classes, clip_values=(0.0, 1.0)
    )


def by_foolbox(net: nn.Module, x: np.ndarray, y: np.ndarray, **options: Any) -> np.ndarray:
    model = foolbox.PyTorchModel(net, bounds=(0, 1))
    attack = foolbox.attacks.L2CarliniWagnerAttack(stepsize=0.01, confidence=0.01, **options)
    found, _, _ = attack(model, torch.from_numpy(x), torch.from_numpy(y), epsilons=None)
    return np.asarray(found.numpy())


def distances(x_adv: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.square(x_adv - x, dtype=np.float64).sum((1, 2, 3))))


def predictions(net: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(x)).argmax(1).numpy())


@pytest.fixture
def correct(victim: Victim) -> Victim:
    net, x, y = victim
    right = predictions(net, x) == y
    assert right.sum() >= 8
    return net, x[right][:8], y[right][:8]


def test_one_search_step_equals_foolbox(correct: Victim) -> None:
    """The same iterates: the same images broken, at the same distance."""
    net, x, _ = correct
    x = 0.05 + 0.9 * x  # away from black and white, where ours starts elsewhere on purpose
    y = predictions(net, x)
    expected = by_foolbox(net, x, y, steps=60, binary_search_steps=1, initial_const=1.0, abort_early=False)
    attack = CarliniWagnerL2(
        art_estimator(net, x.shape[1:]), max_iter=60, binary_search_steps=1, initial_const=1.0, abort_early=False
    )
    found = attack.generate(x, y)
    broken = expected.any(axis=(1, 2, 3))  # foolbox hands back a black image where it found nothing
    assert broken.any()
    np.testing.assert_array_equal((found != x).any(axis=(1, 2, 3)), broken)
    np.testing.assert_allclose(distances(found, x)[broken], distances(expected, x)[broken], rtol=5e-3)
    np.testing.assert_array_equal(predictions(net, found) != y, broken)


def test_binary_search_is_as_good_as_foolbox_and_better_than_art(correct: Victim) -> None:
    net, x, y = correct
    estimator = art_estimator(net, x.shape[1:])
    found = CarliniWagnerL2(estimator, max_iter=100, binary_search_steps=5, initial_const=1.0).generate(x, y)
    expected = by_foolbox(net, x, y, steps=100, binary_search_steps=5, initial_const=1.0)
    broken, theirs_broken = predictions(net, found) != y, expected.any(axis=(1, 2, 3))
    assert broken.sum() >= max(theirs_broken.sum(), 4)
    both = broken & theirs_broken
    assert np.median(distances(found, x)[both]) <= 1.02 * np.median(distances(expected, x)[both])
    assert found.min() >= 0
    assert found.max() <= 1
    reference = CarliniL2Method(
        estimator, max_iter=20, binary_search_steps=1, initial_const=10.0, batch_size=8, verbose=False
    )
    theirs = reference.generate(x, y)
    wrong = broken & (predictions(net, theirs) != y)
    assert wrong.any()
    assert np.median(distances(found, x)[wrong]) <= 1.02 * np.median(distances(theirs, x)[wrong])


def test_early_abort_saves_passes_and_changes_little() -> None:
    module, split = TwoClassLinear().requires_grad_(False), linear_split(12)
    x = split.take(slice(None)) / np.float32(255)
    near, passes = {}, {}
    for abort in (True, False):
        counted = Counted(module)
        estimator = to_estimator(as_torch(module, SHAPE), module=counted)
        attack = CarliniWagnerL2(estimator, max_iter=500, binary_search_steps=4, abort_early=abort)
        near[abort] = distances(attack.generate(x, split.labels), x)
        passes[abort] = counted.backwards
    assert passes[False] == 500 * 4 * 12
    assert passes[True] < 0.8 * passes[False]
    assert near[True].min() > 0
    assert np.median(near[True]) <= 1.01 * np.median(near[False])


@pytest.mark.parametrize("targeted", [False, True])
def test_nearest_image_of_a_linear_model(targeted: bool) -> None:
    """Within 2 % of the margin, and never below it."""
    module, split = TwoClassLinear().requires_grad_(False), linear_split(24)
    x = split.take(slice(None)) / np.float32(255)
    attack = CarliniWagnerL2(art_estimator(module, SHAPE, 2), max_iter=300, targeted=targeted)
    found = attack.generate(x, 1 - split.labels if targeted else split.labels)
    assert (predictions(module, found) != split.labels).all()
    distance, margins = distances(found, x), module.margins(x, "l2")
    assert (distance >= margins * (1 - 1e-5)).all()
    # The confidence is a distance of its own: half of it, since both logits move, over the length of w.
    reach = margins + attack.confidence / 2 / float(module.w.norm())
    assert (distance <= 1.02 * reach + 5e-4).all()
    assert np.median(distance / margins) <= 1.02


class Faint(nn.Module):
    """A linear model whose logits hardly differ."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TwoClassLinear()

    def forward(self, x: Tensor) -> Tensor:
        return 1e-4 * self.inner(x)


def test_tiny_gradients_are_no_robustness() -> None:
    module, split = Faint().requires_grad_(False), linear_split(8)
    x = split.take(slice(None)) / np.float32(255)
    attack = CarliniWagnerL2(art_estimator(module, SHAPE, 2), max_iter=200, confidence=0.0)
    found = attack.generate(x, split.labels)
    assert (predictions(module, found) != split.labels).all()
    assert (distances(found, x) <= 1.03 * module.inner.margins(x, "l2") + 5e-4).all()


def test_a_search_that_fails_returns_the_clean_image() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = 0 * x.flatten(1).sum(1)
            return torch.stack([score + 1, score], dim=1)

    x = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
    found = CarliniWagnerL2(art_estimator(Constant(), SHAPE, 2), max_iter=20).generate(x, np.zeros(3, np.int64))
    np.testing.assert_array_equal(found, x)


def test_batch_size_and_neighbours_change_nothing() -> None:
    module, split = TwoClassLinear().requires_grad_(False), linear_split(11)
    x = split.take(slice(None)) / np.float32(255)
    estimator = art_estimator(module, SHAPE, 2)
    # 73 is no multiple of a check's interval, so that searches in one batch drift apart.
    whole = CarliniWagnerL2(estimator, max_iter=73, binary_search_steps=3).generate(x, split.labels)
    parts = CarliniWagnerL2(estimator, max_iter=73, binary_search_steps=3, batch_size=3)
    np.testing.assert_allclose(parts.generate(x[::-1], split.labels[::-1])[::-1], whole, atol=1e-5)
    assert (whole != x).any()


def test_pixels_at_the_ends_of_the_range(correct: Victim) -> None:
    """Digits are 0 in most of their pixels: a start at infinity would give NaN."""
    net, x, y = correct
    x = np.round(x)
    assert (x == 0).any()
    assert (x == 1).any()
    y = predictions(net, x)
    found = CarliniWagnerL2(
        art_estimator(net, x.shape[1:]), max_iter=500, binary_search_steps=1, initial_const=100.0
    ).generate(x, y)
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert (predictions(net, found) != y).mean() > 0.5


def test_arguments_are_checked() -> None:
    estimator = art_estimator(TwoClassLinear(), SHAPE, 2)
    for wrong in ({"max_iter": 0}, {"binary_search_steps": 0}, {"initial_const": 0.0}, {"learning_rate": -1.0}):
        with pytest.raises(ValueError, match=f"expected {next(iter(wrong))} >"):
            CarliniWagnerL2(estimator, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs the classes to reach"):
        CarliniWagnerL2(estimator, targeted=True).generate(np.zeros((1, *SHAPE), np.float32))
