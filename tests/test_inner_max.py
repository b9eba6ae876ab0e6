"""The ascent on functions whose maximum in the ball is known."""

import pytest
import torch

from dgad_tk.config import ThreatModel
from dgad_tk.inner_max import inner_max, start_point

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


def test_an_empty_batch_comes_back() -> None:
    def objective(z: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing to attack")

    assert inner_max(objective, X[:0], X[:0], ThreatModel(eps=0.1, step_size=0.1)).shape == (0, 1, 2, 2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_zero_gradient_moves_nothing_and_is_finite(norm: str) -> None:
    threat = ThreatModel.model_validate({"norm": norm, "eps": 0.1, "step_size": 0.1})
    assert torch.equal(inner_max(lambda z: (z * 0).flatten(1).sum(1), X, X, threat), X)
