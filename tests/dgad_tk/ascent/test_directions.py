"""Gradients that are not finite, very small or very large: searches go on, in every norm, as if they were ordinary."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from dgad_tk.ascent.directions import finite, in_range, unit
from dgad_tk.ascent.inner_max import inner_max
from dgad_tk.ascent.losses import cross_entropy
from dgad_tk.config.threat import Norm, ThreatModel
from evaluators.attacks.autoattack.apgd.apgd import APGD
from evaluators.attacks.autoattack.fab.fab import FAB
from evaluators.attacks.cw2 import CarliniWagnerL2
from evaluators.attacks.jsma import SaliencyMap
from evaluators.attacks.native import NativeAttack
from evaluators.attacks.pgd import ProjectedGradient
from evaluators.target.ball import into_ball

NAN, INF = float("nan"), float("inf")
SIDE = 4
EPS = {"linf": 0.1, "l2": 0.1 * SIDE, "l1": 0.1 * SIDE**2}


class Mean(nn.Module):
    """Class 1 where the mean is above one half, by logits -/+ `scale` (mean - 0.5); `odd` adds what is no number to
    the gradient of the first pixel, and nothing that counts to the logits."""

    def __init__(self, scale: float = 10.0, odd: str = "") -> None:
        super().__init__()
        self.scale, self.odd = scale, odd

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1)
        lead = self.scale * (pixels.mean(dim=1) - 0.5)
        first = pixels[:, 0]
        if self.odd == "infinite":  # the slope of a root at 0
            lead = lead + 1e-6 * self.scale * first.sqrt()
        if self.odd == "nan":  # 0/0, as the derivative of a norm has it at its centre
            lead = lead + 1e-6 * self.scale * (first * first).sqrt()
        return torch.stack([-lead, lead], dim=1)


def images() -> tuple[np.ndarray, np.ndarray]:
    """Twelve images with means 0.02 to 0.24 from one half, so that 0.1 breaks every other; the first pixel is black."""
    gaps = np.float32([0.02, 0.04, 0.06, 0.16, 0.2, 0.24])
    means = np.concatenate([0.5 - gaps, 0.5 + gaps])
    x = np.ones((12, 1, SIDE, SIDE), np.float32) * means[:, None, None, None]
    x[:, 0, 0, 0] = 0.0
    x *= (means / x.mean(axis=(1, 2, 3)))[:, None, None, None]  # the others make up for the black one
    return x, np.repeat([0, 1], 6)


def classifier(model: nn.Module) -> PyTorchClassifier:
    return PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=(1, SIDE, SIDE), nb_classes=2, clip_values=(0.0, 1.0)
    )


def left(attack: NativeAttack) -> int:
    """Images that are right when they are in the ball again, since FAB also finds what is outside."""
    x, labels = images()
    x_adv = attack.generate(x, labels)
    assert np.isfinite(x_adv).all()
    if attack.eps:
        x_adv = into_ball(x_adv, x, attack.norm, attack.eps)
    return int((attack.estimator.predict(x_adv).argmax(axis=1) == labels).sum())


def pgd(net: PyTorchClassifier, norm: Norm, **more: Any) -> NativeAttack:
    return ProjectedGradient(net, norm=norm, eps=EPS[norm], step_size=EPS[norm] / 4, init="none", **more)


BALL = {
    "pgd": pgd,
    "mim": partial(pgd, momentum=1.0),
    "apgd": lambda net, norm: APGD(net, norm=norm, eps=EPS[norm], steps=25),
    "fab": lambda net, norm: FAB(net, norm=norm, eps=1.01 * EPS[norm], targets=1, steps=25),
}
IN_NORM = [(name, norm) for name in BALL for norm in EPS if norm != "l1" or name in ("apgd", "fab")]


@pytest.mark.parametrize("odd", ["", "infinite", "nan"])
@pytest.mark.parametrize(("name", "norm"), IN_NORM)
def test_one_odd_pixel_does_not_end_a_search(name: str, norm: Norm, odd: str) -> None:
    assert left(BALL[name](classifier(Mean(odd=odd)), norm)) == 6


@pytest.mark.parametrize("odd", ["", "infinite", "nan"])
def test_one_odd_pixel_does_not_end_a_search_for_the_nearest_image(odd: str) -> None:
    net = classifier(Mean(odd=odd))
    assert left(CarliniWagnerL2(net, binary_search_steps=3, max_iter=100)) == 0
    assert left(SaliencyMap(net, gamma=1.0)) == 6  # it only brightens: the bright class stays


@pytest.mark.parametrize("scale", [1e-12, 1e-18, 30.0])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_size_of_logits_does_not_matter(norm: str, scale: float) -> None:
    net = classifier(Mean(scale))
    assert left(BALL["apgd"](net, norm)) == 6
    if norm != "l1":
        assert left(pgd(net, norm, loss="cw")) == 6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_training_makes_finite_images_of_them(norm: str) -> None:
    x, labels = (torch.from_numpy(each) for each in images())
    model = Mean(odd="nan")
    made = inner_max(lambda z: cross_entropy(model(z), labels), x, x, ThreatModel.of(norm, EPS[norm]))
    assert made.isfinite().all()
    assert int((model(made).argmax(dim=1) == labels).sum()) == 6


def test_what_becomes_of_entries() -> None:
    gradient = torch.tensor([[1.0, -2.0, INF], [NAN, -INF, 0.0], [3.0, 4.0, 0.0]])
    assert finite(gradient).tolist() == [[1.0, -2.0, 2.0], [0.0, -1.0, 0.0], [3.0, 4.0, 0.0]]
    ordinary = torch.randn(3, 4)
    assert finite(ordinary) is ordinary
    assert in_range(ordinary) is ordinary


def test_unit_vectors_of_any_size() -> None:
    for size in (1e-40, 1e-25, 1e-12, 1.0, 1e12, 1e30):
        found = unit(torch.tensor([[3.0, 4.0]]) * size)
        # A denormal number keeps some bits of its 24 only.
        torch.testing.assert_close(found, torch.tensor([[0.6, 0.8]]), rtol=1e-4 if size == 1e-40 else 1e-6, atol=0)
    assert unit(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_the_order_in_memory_stays() -> None:
    """Networks on a CPU are fast channels-last; a step that lost it would cost a quarter of an ascent."""
    gradient = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for size in (1.0, 1e-20):
        for made in (finite(gradient * size), in_range(gradient * size), unit(gradient * size)):
            assert made.is_contiguous(memory_format=torch.channels_last)
