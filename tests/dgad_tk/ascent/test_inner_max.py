"""The ascent on functions whose maximum in the ball is known."""

import pytest
import torch

from dgad_tk.ascent.inner_max import inner_max, start_point
from dgad_tk.config.threat import ThreatModel

pytestmark = pytest.mark.portable

X = torch.full((2, 1, 2, 2), 0.5)
DIRECTION = torch.tensor([[[[1.0, -2.0], [3.0, -4.0]]]])


def test_linf_reaches_the_corner() -> None:
    threat = ThreatModel(eps=0.1, step_size=0.04, steps=3)
    found = inner_max(lambda z: (z * DIRECTION).flatten(1).sum(1), X, X, threat)
    torch.testing.assert_close(found, X + 0.1 * DIRECTION.sign().expand_as(X))
    assert not found.requires_grad


def test_l2_reaches_the_sphere_along_the_gradient() -> None:
    threat = ThreatModel(norm="l2", eps=0.2, step_size=0.1, steps=4)
    found = inner_max(lambda z: (z * DIRECTION).flatten(1).sum(1), X, X, threat)
    torch.testing.assert_close(found, (X + 0.2 * DIRECTION / DIRECTION.norm()).expand_as(X))


def test_stays_in_the_unit_cube() -> None:
    x = torch.tensor([0.02, 0.98]).view(2, 1, 1, 1)
    threat = ThreatModel(eps=0.1, step_size=0.1, steps=2)
    found = inner_max(lambda z: (z - 0.5).square().flatten(1).sum(1), x, x, threat)
    assert found.flatten().tolist() == [0.0, 1.0]


def test_starts() -> None:
    threat = ThreatModel(eps=0.1, step_size=0.1, steps=1)
    edge = torch.zeros(2, 1, 2, 2)

    def ones(kind: str) -> torch.Tensor:
        return -torch.ones(2, 1, 2, 2)

    assert start_point(edge, threat, "none", ones) is edge
    torch.testing.assert_close(start_point(edge, threat, "gauss", ones), edge - 0.001)
    torch.testing.assert_close(start_point(edge, threat, "uniform", ones), edge - 0.1)
    assert start_point(edge, threat, "uniform", ones, clip=True).min() == 0
    l2 = start_point(X, ThreatModel(norm="l2", eps=0.1, step_size=0.1), "uniform", ones)
    torch.testing.assert_close((l2 - X).flatten(1).norm(dim=1), torch.full((2,), 0.1))
    for draws in (ones, lambda kind: torch.linspace(-1, 1, 8).view_as(X)):  # -1 and 1 too
        l1 = start_point(X, ThreatModel(norm="l1", eps=0.1, step_size=0.1), "uniform", draws)
        torch.testing.assert_close((l1 - X).flatten(1).abs().sum(dim=1), torch.full((2,), 0.1))
        assert ((l1 - X).sign() == draws("uniform").sign()).all()


def test_an_empty_batch_comes_back() -> None:
    def objective(z: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing to attack")

    assert inner_max(objective, X[:0], X[:0], ThreatModel(eps=0.1, step_size=0.1)).shape == (0, 1, 2, 2)


def test_l1_takes_the_heaviest_pixel_that_may_move() -> None:
    """In 4 pixels a hundredth is one: to 1 where it stops, then the next, until the ball's edge stops both."""
    x = torch.tensor([0.5, 0.5, 0.5, 0.9]).view(1, 1, 2, 2)
    slopes = torch.tensor([1.0, -2.0, 3.0, 4.0]).view(1, 1, 2, 2)

    def moved(steps: int, size: float, eps: float) -> list[float]:
        threat = ThreatModel(norm="l1", eps=eps, step_size=size, steps=steps)
        return (inner_max(lambda z: (z * slopes).flatten(1).sum(1), x, x, threat) - x).flatten().tolist()

    assert moved(1, 0.2, 0.25) == pytest.approx([0, 0, 0, 0.1])
    assert moved(2, 0.2, 0.25) == pytest.approx([0, 0, 0.175, 0.075])
    assert moved(1000, 0.002, 1.0) == pytest.approx([0, -0.4, 0.5, 0.1], abs=0.002)


def test_momentum_accumulates_unit_gradients() -> None:
    """Written out for two steps of gradients (3, 1) and (0, -2): g = (3, 1)/4, then m g + (0, -1)."""
    slopes = iter([torch.tensor([3.0, 1.0]), torch.tensor([0.0, -2.0])])
    threat, x = ThreatModel(norm="l2", eps=9, step_size=0.01, steps=2), torch.full((1, 1, 1, 2), 0.5)
    found = inner_max(lambda z: (z.flatten(1) * next(slopes)).sum(dim=1), x, x, threat, momentum=0.5)
    ways = torch.tensor([[0.75, 0.25], [0.375, 0.125 - 1.0]])
    expected = 0.5 + 0.01 * (ways / ways.norm(dim=1, keepdim=True)).sum(dim=0)
    torch.testing.assert_close(found.flatten(), expected)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_zero_gradient_moves_nothing_and_is_finite(norm: str) -> None:
    threat = ThreatModel.model_validate({"norm": norm, "eps": 0.1, "step_size": 0.1})
    assert torch.equal(inner_max(lambda z: (z * 0).flatten(1).sum(1), X, X, threat), X)
