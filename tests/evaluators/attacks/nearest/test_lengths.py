"""Perturbations cut down to a length: inside, unchanged where short, and no point of the ball nearer."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgad_tk.config.threat import Norm
from evaluators.attacks.nearest.lengths import length, shortened

NORMS: list[Norm] = ["linf", "l2", "l1", "l0"]
ORDERS: dict[str, Any] = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}


def perturbations(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(n, 30, generator=generator, dtype=torch.float64)
    delta = torch.randn(n, 30, generator=generator, dtype=torch.float64)
    delta[torch.rand(n, 30, generator=generator) < 0.2] = 0
    return x, delta


@pytest.mark.parametrize("norm", NORMS)
def test_length_is_numpys(norm: Norm) -> None:
    _, delta = perturbations()
    np.testing.assert_allclose(length(delta, norm), np.linalg.norm(delta.numpy(), ord=ORDERS[norm], axis=1), rtol=1e-14)


@pytest.mark.parametrize("norm", NORMS)
def test_cut_to_the_radius_of_each_image(norm: Norm) -> None:
    x, delta = perturbations()
    shares = torch.linspace(0.1, 1.3, len(x), dtype=torch.float64)
    radius = length(delta, norm) * shares
    if norm == "l0":
        radius = radius.floor().clamp(min=1)
    found = shortened(delta, x, radius, norm)
    assert (length(found, norm) <= radius * (1 + 1e-12)).all()
    long = shares >= 1
    if norm != "l1":  # which also heeds the edges
        assert torch.equal(found[long], delta[long])
    inside = shortened(0.01 * delta, 0.4 + 0.2 * x, 0.02 * length(delta, norm) if norm != "l0" else radius, norm)
    if norm != "l0":
        torch.testing.assert_close(inside, 0.01 * delta, rtol=0, atol=1e-15)


@pytest.mark.parametrize("norm", NORMS)
def test_no_point_of_the_ball_is_nearer(norm: Norm) -> None:
    """Against 4,000 others, some of them next to it."""
    x, delta = perturbations(4)
    delta *= 0.3
    x = 0.4 + 0.2 * x
    radius = (length(delta, norm) * 0.4).floor() if norm == "l0" else length(delta, norm) * 0.4
    found = shortened(delta, x, radius, norm)
    gap = (found - delta).norm(dim=1)
    generator = torch.Generator().manual_seed(4)
    for spread in (0.001, 0.03, 1.0):
        for _ in range(1000):
            noise = torch.randn(found.shape, generator=generator, dtype=torch.float64)
            other = shortened(found + spread * noise, x, radius, norm)
            assert (length(other, norm) <= radius * (1 + 1e-12)).all()
            assert ((other - delta).norm(dim=1) >= gap * (1 - 1e-12)).all()


def test_in_l0_the_first_of_equal_values_stay() -> None:
    delta = torch.tensor([[0.5, -0.5, 0.25, 0.5], [0.1, 0.4, 0.2, 0.3]])
    found = shortened(delta, torch.full((2, 4), 0.5), torch.tensor([2.0, 3.0]), "l0")
    assert length(found, "l0").tolist() == [2.0, 3.0]
    assert found[1].tolist() == delta[1].where(delta[1] > 0.15, torch.tensor(0.0)).tolist()
    whole = shortened(delta, torch.full((2, 4), 0.5), torch.tensor([9.0, 4.0]), "l0")
    assert torch.equal(whole, delta)
