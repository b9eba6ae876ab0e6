"""sigma-zero against adversarial-library's points, and against the fewest values that a linear model needs."""

from typing import Any

import numpy as np
import pytest
import torch
from nearest_steps import DATA, STEPS, Remembering, images, recorded, watched
from torch import Tensor

from evaluators.attacks.nearest.sigma_zero import SigmaZero

pytestmark = pytest.mark.portable


@pytest.mark.parametrize("where", ["grey", "edges"])
def test_points_are_those_of_adversarial_library(where: str) -> None:
    with np.load(DATA) as stored:
        expected = stored[f"sigma-zero/l0/{where}"]
    found = recorded(lambda net: SigmaZero(net, steps=STEPS), *images(where == "edges"))
    # Rounding of 1e-16 passes through Adam's divisor, which is as small as 1e-3.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_an_image_alone_or_in_company() -> None:
    x, y = images(True, n=8)

    def search(batch_size: int, rows: Any = slice(None)) -> Tensor:
        attack = SigmaZero(watched(Remembering()), steps=30, seed=3, batch_size=batch_size)
        return attack.search(x[rows], y[rows], (torch.arange(8) + 100)[rows])

    whole = search(250)
    assert (whole != x).flatten(1).any(dim=1).all()
    for other in (search(1), search(5), search(5, torch.arange(7, -1, -1)).flip(0)):
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-9)


def test_more_steps_never_need_more_values() -> None:
    """The best of a search counts, not its last point: a short threshold schedule is its longer one's beginning."""
    x, y = images(True, n=6)
    net = Remembering()
    found = SigmaZero(watched(net), steps=60).search(x, y, torch.arange(6))
    with torch.no_grad():
        missed = torch.stack([net(each).argmax(1) != y for each in list(net.asked)])
    changed = torch.stack([(each != x).flatten(1).sum(dim=1) for each in net.asked[: len(missed)]])
    least = torch.where(missed, changed, 10**6).amin(dim=0)
    assert torch.equal((found != x).flatten(1).sum(dim=1), least)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "expected sigma > 0, got 0.0"),
        ({"threshold": 1.5}, "expected threshold in .0, 1., got 1.5"),
        ({"step_size": float("inf")}, "expected step_size > 0, got inf"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SigmaZero(watched(Remembering()), **settings)
