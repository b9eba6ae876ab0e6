"""DDN against foolbox's points and adversarial-library's, and on a model without a gradient."""

from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from nearest_steps import DATA, IMAGE, STEPS, Remembering, asked, images, recorded, watched
from torch import Tensor, nn
from victims import as_torch

from evaluators.attacks.nearest.ddn import DecoupledDirectionNorm
from evaluators.target.ball import l2
from evaluators.target.estimators import to_estimator

pytestmark = pytest.mark.portable


@pytest.mark.filterwarnings("ignore:The PyTorch model is in training mode")
@pytest.mark.parametrize("where", ["grey", "edges"])
def test_points_are_foolboxes_and_adversarial_librarys(where: str) -> None:
    x, y = images(where == "edges")
    net = Remembering()
    foolbox.attacks.DDNAttack(steps=STEPS).run(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y)
    found = recorded(lambda net: DecoupledDirectionNorm(net, steps=STEPS), x, y)
    np.testing.assert_allclose(found, asked(net), rtol=0, atol=1e-12)
    with np.load(DATA) as stored:  # whose radius is float32 even then
        np.testing.assert_allclose(found, stored[f"ddn/l2/{where}"], rtol=0, atol=1e-6)


def test_an_image_alone_or_in_company() -> None:
    x, y = images(True, n=8)

    def search(batch_size: int, rows: Any = slice(None)) -> Tensor:
        attack = DecoupledDirectionNorm(watched(Remembering()), steps=20, seed=3, batch_size=batch_size)
        return attack.search(x[rows], y[rows], (torch.arange(8) + 100)[rows])

    whole = search(250)
    for other in (search(1), search(5), search(5, torch.arange(7, -1, -1)).flip(0)):
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-12)


class Sure(nn.Module):
    """So sure that the cross-entropy of float32 and its gradient are 0 near the image."""

    def forward(self, x: Tensor) -> Tensor:
        ahead = 4e4 * (0.51 - x.flatten(1).mean(dim=1))
        return torch.stack([ahead, -ahead], dim=1)


def test_a_saturated_loss_ends_no_search() -> None:
    x, y = np.full((8, *IMAGE), 0.5, dtype=np.float32), np.zeros(8, dtype=np.int64)
    net = Sure()
    with torch.no_grad():
        assert (torch.softmax(net(torch.from_numpy(x)), dim=1)[:, 1] == 0).all()
    found = DecoupledDirectionNorm(to_estimator(as_torch(net, IMAGE)), steps=200).generate(x, y)
    broken = found.mean(axis=(1, 2, 3)) > 0.51
    assert broken.mean() > 0.5
    assert l2(found, x)[broken].min() > 0.01 * 48**0.5 * 0.999  # the margin


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gamma": 1.0}, "expected gamma in .0, 1., got 1.0"), ({"first": 0.0}, "expected first > 0, got 0.0")],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoupledDirectionNorm(watched(Remembering()), **settings)
