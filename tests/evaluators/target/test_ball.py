"""The ball to the last bit, and intervals against SciPy's."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from dgad_tk.answers.doubts import wilson
from evaluators.target.ball import DISTANCES, bounds, into_ball


@pytest.mark.parametrize("eps", [8 / 255, 0.1, 0.15, 1 / 3, 1e-3])
def test_bounds_are_inside_and_as_wide_as_float32_allows(eps: float) -> None:
    x = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8)).astype(np.float32) / np.float32(255)
    lower, upper = bounds(x, eps)
    assert lower.dtype == upper.dtype == np.float32
    wide = x.astype(np.float64)
    assert (wide - lower.astype(np.float64) <= eps).all()
    assert (upper.astype(np.float64) - wide <= eps).all()
    assert lower.min() >= 0
    assert upper.max() <= 1
    # One step further out and the bound would be broken.
    assert (np.nextafter(upper, np.float32(2)).astype(np.float64) > np.minimum(wide + eps, 1)).all()
    low = np.maximum(wide - eps, 0)
    assert (np.nextafter(lower, np.float32(-1)).astype(np.float64) < low).all()


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 0.3), ("l2", 0.3), ("l2", 0.02), ("l1", 6.0), ("l1", 0.3), ("l0", 5.0)]
)
def test_into_ball(norm: str, eps: float) -> None:
    generator = np.random.default_rng(1)
    x = generator.random((200, 3, 4, 4), dtype=np.float32)
    wild = (x + generator.normal(0, 0.5, x.shape)).astype(np.float32)
    wild[0] = np.nan
    found = into_ball(wild, x, norm, eps)  # type: ignore[arg-type]
    distance = DISTANCES[norm](found, x)  # type: ignore[index]
    assert found.dtype == np.float32
    assert (distance <= eps).all()
    assert distance[1:].max() > eps * (1 - 1e-5)
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.array_equal(found[0], x[0])
    assert np.array_equal(into_ball(found, x, norm, eps), found)  # type: ignore[arg-type]


def test_in_l0_the_values_that_changed_most_stay() -> None:
    x = np.full((1, 1, 2, 3), 0.5, np.float32)
    wild = x + np.float32([[[[0.1, -0.4, 0.0], [0.3, -0.3, 0.2]]]])
    assert np.array_equal(into_ball(wild, x, "l0", 2.9) != x, [[[[False, True, False], [True, False, False]]]])
    assert np.array_equal(into_ball(wild, x, "l0", 6), wild)


@pytest.mark.parametrize("norm", DISTANCES)
def test_distances_are_numpys(norm: Any) -> None:
    generator = np.random.default_rng(1)
    x, other = generator.random((2, 5, 3, 4, 4), dtype=np.float32)
    other[:, 0] = x[:, 0]
    gap = (other.astype(np.float64) - x).reshape(5, -1)
    order = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    assert DISTANCES[norm](other, x) == pytest.approx(np.linalg.norm(gap, ord=order, axis=1), rel=1e-14)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 7), (450, 1000)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_of_nothing_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
