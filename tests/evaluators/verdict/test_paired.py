"""Paired comparison against published and independent figures."""

import numpy as np
import pytest
from scipy.stats import chi2, norm

from evaluators.verdict.paired import holm, paired


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, first, second, neither])
    b = np.repeat([True, False, True, False], [both, first, second, neither])
    return a, b


def test_agresti_and_min_example() -> None:
    """The prime minister's approval, 944 and 880 of 1600 (Agresti, Categorical Data Analysis, section 11.1)."""
    found = paired(*outcomes(794, 150, 86, 570))
    assert found.difference == pytest.approx(64 / 1600)
    assert (found.only_first, found.only_second, found.n) == (150, 86, 1600)
    # Wald's interval is 0.0212 to 0.0588 there; half an image a cell moves it by less than 0.0003.
    assert found.ci95 == pytest.approx((0.0212, 0.0588), abs=3e-4)
    # The exact test agrees with the chi-square approximation where there is plenty of data.
    assert found.p == pytest.approx(chi2.sf((abs(150 - 86) - 1) ** 2 / 236, 1), rel=0.15)


def test_without_a_difference_the_interval_is_not_empty() -> None:
    found = paired(*outcomes(90, 0, 0, 10))
    assert found.difference == 0
    assert found.p == 1
    assert found.ci95[0] < 0 < found.ci95[1]
    assert found.ci95[1] == pytest.approx(-found.ci95[0])


def test_the_interval_is_one_of_differences() -> None:
    """By hand, 2 images that only the first got right: (2.5 - 0.5) / 4 + 1.96 * sqrt(3 - 4 / 4) / 4 is above 1."""
    low, high = paired(*outcomes(0, 2, 0, 0)).ci95
    assert high == 1
    assert low == pytest.approx(0.5 - 1.959964 * 2**0.5 / 4)
    assert paired(*outcomes(0, 0, 2, 0)).ci95 == (-1, pytest.approx(-low))


def test_coverage() -> None:
    """The interval holds the true difference in about 95 of 100 samples."""
    rng = np.random.default_rng(0)
    cells = [0.5, 0.04, 0.02, 0.44]
    held = 0
    for _ in range(1000):
        low, high = paired(*outcomes(*rng.multinomial(500, cells))).ci95
        held += low <= 0.02 <= high
    assert 0.93 <= held / 1000 <= 0.97


def test_shapes() -> None:
    with pytest.raises(ValueError, match="the same images"):
        paired(np.ones(3, bool), np.ones(4, bool))


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # R: p.adjust(p, "holm")
        ([0.2], [0.2]),
        ([], []),
        ([1.0, 0.5, 0.5], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted)


def test_holm_calls_nothing_real_more_often_than_it_says() -> None:
    """Of 400 families of ten tests of nothing, about one in twenty has a rejection, whether they are alike or not."""
    rng = np.random.default_rng(1)
    for alike in (0.0, 0.9):
        common = rng.normal(size=(400, 1)) * alike + rng.normal(size=(400, 10)) * (1 - alike**2) ** 0.5
        families = 2 * norm.sf(np.abs(common))
        rejected = sum(min(holm(each)) < 0.05 for each in families.tolist())
        assert rejected / 400 <= 0.08
