"""FMN against adversarial-library's points and foolbox's, step by step in float64, and what it promises of an image."""

from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from nearest_steps import DATA, IMAGE, STEPS, Remembering, asked, images, recorded, watched
from torch import Tensor, nn
from victims import as_torch

from dgad_tk.config.threat import Norm
from evaluators.attacks.nearest.fmn import FastMinimumNorm
from evaluators.target.ball import DISTANCES
from evaluators.target.estimators import to_estimator

pytestmark = pytest.mark.portable

NORMS: list[Norm] = ["linf", "l2", "l1", "l0"]
INSIDE = 5
"""Steps in which no point of the L1 search leaves [0, 1]; from there on ours cuts with regard to the edges."""


@pytest.mark.parametrize("where", ["grey", "edges"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_points_are_those_of_adversarial_library(norm: Norm, where: str) -> None:
    with np.load(DATA) as stored:
        expected = stored[f"fmn/{norm}/{where}"]
    found = recorded(lambda net: FastMinimumNorm(net, norm=norm, steps=STEPS), *images(where == "edges"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert (found[0] != found[-1]).any()


def test_points_in_l1_are_the_same_inside_the_box() -> None:
    with np.load(DATA) as stored:
        expected = stored["fmn/l1/grey"][: INSIDE + 1]
    found = recorded(lambda net: FastMinimumNorm(net, norm="l1", steps=STEPS), *images(False))[: INSIDE + 1]
    np.testing.assert_allclose(found[:INSIDE], expected[:INSIDE], rtol=0, atol=1e-12)
    assert (found[1] != found[0]).any()


@pytest.mark.filterwarnings("ignore:The PyTorch model is in training mode")
@pytest.mark.parametrize("where", ["grey", "edges"])
def test_points_in_linf_are_foolboxes(where: str) -> None:
    x, y = images(where == "edges")
    net = Remembering()
    foolbox.attacks.LInfFMNAttack(steps=STEPS).run(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y)
    found = recorded(lambda net: FastMinimumNorm(net, norm="linf", steps=STEPS), x, y)
    # foolbox asks about each point once, and about none before the first.
    np.testing.assert_allclose(found, asked(net), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", NORMS)
def test_an_image_alone_or_in_company(norm: Norm) -> None:
    x, y = images(True, n=8)

    def search(batch_size: int, rows: Any = slice(None)) -> Tensor:
        attack = FastMinimumNorm(watched(Remembering()), norm=norm, steps=20, seed=3, batch_size=batch_size)
        return attack.search(x[rows], y[rows], (torch.arange(8) + 100)[rows])

    whole = search(250)
    assert (whole != x).flatten(1).any(dim=1).all()
    for other in (search(1), search(5), search(5, torch.arange(7, -1, -1)).flip(0)):
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_what_it_returns_is_what_the_network_saw(norm: Norm) -> None:
    """Bit for bit, in float32: the nearest of all points that it was asked about and got wrong."""
    x, y = (each.float() if each.is_floating_point() else each for each in images(True, n=6))
    net = Remembering().float()
    found = FastMinimumNorm(watched(net), norm=norm, steps=30).search(x, y, torch.arange(6))
    points = torch.stack(net.asked)
    with torch.no_grad():
        missed = torch.stack([net(each).argmax(1) != y for each in points])
    for at in range(6):
        wrong = points[missed[:, at], at].numpy()
        assert (wrong == found[at].numpy()).all(axis=(1, 2, 3)).any()
        far = DISTANCES[norm](wrong, np.broadcast_to(x[at].numpy(), wrong.shape))
        assert DISTANCES[norm](found[at : at + 1].numpy(), x[at : at + 1].numpy())[0] <= far.min() * (1 + 1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_whose_search_fails_comes_back_as_it_was(norm: Norm) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).requires_grad_(False)
    net[1].weight.zero_()
    net[1].bias[:] = torch.tensor([1.0, 0.0, 0.0])
    x = torch.rand(5, *IMAGE).numpy()
    attack = FastMinimumNorm(to_estimator(as_torch(net.eval(), IMAGE)), norm=norm, steps=5)
    assert np.array_equal(attack.generate(x, np.zeros(5, dtype=np.int64)), x)
    assert np.array_equal(attack.generate(x, np.ones(5, dtype=np.int64)), x)  # wrong already, at no distance


class Steps(nn.Module):
    """Class 1 where the mean is above 1/2, by a threshold: its gradient is 0 everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        above = (x.flatten(1).mean(dim=1) > 0.5).to(x.dtype)
        return torch.stack([1 - above, above], dim=1) + 0 * x.flatten(1).sum(dim=1, keepdim=True)


def test_without_a_gradient_directions_are_drawn_for_images() -> None:
    """So that a plateau is left, and the same way in any company."""
    x = np.full((6, *IMAGE), 0.499, dtype=np.float32)
    y = np.zeros(6, dtype=np.int64)
    attack = FastMinimumNorm(to_estimator(as_torch(Steps(), IMAGE)), norm="linf", steps=30)
    found = attack.run(x, y, index=np.arange(6)).adversarials
    assert (found.mean(axis=(1, 2, 3)) > 0.5).any()
    assert len({each.tobytes() for each in found}) > 1
    alone = attack.run(x[2:3], y[2:3], index=np.array([2])).adversarials
    assert np.array_equal(alone[0], found[2])


class Overflowing(nn.Module):
    """Logits that overflow where the mean is above 0.6."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(dim=1)
        first = torch.where(mean > 0.6, torch.inf, 2.0 - mean)
        return torch.stack([first, mean], dim=1)


def test_logits_that_are_not_finite_are_a_success() -> None:
    x = np.full((2, *IMAGE), 0.5, dtype=np.float32)
    attack = FastMinimumNorm(to_estimator(as_torch(Overflowing(), IMAGE)), norm="linf", steps=40)
    found = attack.generate(x, np.zeros(2, dtype=np.int64))
    assert np.isfinite(found).all()
    assert (found.mean(axis=(1, 2, 3)) > 0.6).all()
    assert np.abs(found - x).max() < 0.11


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"step_size": 0.0}, "expected step_size > 0, got 0.0"),
        ({"gamma": 1.0}, "expected gamma in .0, 1., got 1.0"),
        ({"norm": "l7"}, "expected norm linf, l2, l1 or l0, got 'l7'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastMinimumNorm(watched(Remembering()), **settings)
