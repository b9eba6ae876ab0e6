"""Curves against eps: counted from distances, thinned without a lie, and what a file may not say."""

import numpy as np
import pytest
from pydantic import ValidationError

from evaluators.curves import Curve, CurveStep, ExactPoint, steps_of


def curve_of(right: int, distances: list[float], n: int, **more: int) -> Curve:
    return Curve(row="fmn", norm="linf", n=n, steps=steps_of(right, distances, **more))


def test_an_image_falls_at_its_distance() -> None:
    """Of ten images eight are right; five fall, two of them at once."""
    curve = curve_of(8, [0.2, 0.1, 0.1, 0.4, 0.3], 10)
    assert [(each.eps, each.robust) for each in curve.steps] == [(0, 8), (0.1, 6), (0.2, 5), (0.3, 4), (0.4, 3)]
    found = {0.0: 8, 0.09: 8, 0.1: 6, 0.15: 6, 0.39: 4, 0.4: 3, 7.0: 3}
    assert {eps: curve.at(eps) for eps in found} == found


def test_nothing_right_or_nothing_broken() -> None:
    assert [(each.eps, each.robust) for each in steps_of(0, [])] == [(0, 0)]
    assert curve_of(4, [], 4).at(9.0) == 4
    assert curve_of(1, [0.0], 1).steps == [CurveStep(eps=0, robust=0)]  # no distance at all


@pytest.mark.parametrize("most", [2, 7, 64, 1000])
def test_a_thinned_curve_is_still_an_upper_bound(most: int) -> None:
    distances = np.random.default_rng(0).random(300).tolist()
    whole, thin = curve_of(310, distances, 400, most=10**6), curve_of(310, distances, 400, most=most)
    assert len(thin.steps) <= most + 1
    assert (thin.steps[0], thin.steps[-1]) == (whole.steps[0], whole.steps[-1])
    assert set(map(repr, thin.steps)) <= set(map(repr, whole.steps))
    for eps in np.linspace(0, 1.2, 50):
        assert whole.at(eps) <= thin.at(eps)


def test_where_it_has_come_down() -> None:
    assert curve_of(100, [0.1] * 50 + [0.2] * 48 + [5.0], 100).reach == 0.2
    assert curve_of(100, [0.1, 0.3], 100).reach == 0.3
    assert curve_of(0, [], 5).reach == 0


@pytest.mark.parametrize(
    ("steps", "exact"),
    [
        ([(0.0, 5), (0.1, 6)], []),  # it rises
        ([(0.0, 5), (0.2, 4), (0.1, 3)], []),  # it goes back
        ([(0.0, 11)], []),  # more than there are
        ([], []),
        ([(0.0, 5)], [(0.1, 11)]),
    ],
)
def test_what_is_no_curve(steps: list[tuple[float, int]], exact: list[tuple[float, int]]) -> None:
    points = [{"row": "a", "eps": eps, "robust": k, "robust_accuracy": 0.5, "ci95": (0, 1)} for eps, k in exact]
    with pytest.raises(ValidationError):
        Curve.model_validate(
            {"row": "fmn", "norm": "l2", "n": 10, "steps": [{"eps": e, "robust": k} for e, k in steps], "exact": points}
        )


def test_exact_points_know_their_radii() -> None:
    point = ExactPoint(row="autoattack@0.1", eps=0.1, robust=3, robust_accuracy=0.3, ci95=(0.1, 0.6))
    curve = Curve(row="fmn", norm="linf", n=10, steps=steps_of(5, [0.2]), exact=[point])
    assert curve.exact_radii == [0.1]
