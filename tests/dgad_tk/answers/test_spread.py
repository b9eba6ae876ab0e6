"""Differences of logits are measured by how far apart these are: no scale and no offset changes a verdict."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dgad_tk.answers.spread import apart, grain, yardstick
from evaluators.target.judge import allowed

LOGITS = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-40, 1.0, 2.0**60])
def test_everything_scales_with_the_logits(scale: float) -> None:
    scaled = LOGITS * np.float32(scale)
    assert np.array_equal(yardstick(scaled), yardstick(LOGITS) * scale)
    assert np.array_equal(grain(scaled), grain(LOGITS) * scale)
    other = LOGITS[::-1].copy()
    assert np.array_equal(apart(scaled, other * np.float32(scale)), apart(LOGITS, other) * scale)
    predictor: Any = SimpleNamespace(precision="fp32", logit_step=0.0, finish=None)
    assert np.array_equal(allowed(predictor, scaled)[0], allowed(predictor, LOGITS)[0] * scale)


def test_an_offset_moves_the_grain_alone() -> None:
    moved = LOGITS + np.float32(1e7)
    assert (grain(moved) == 1).all()
    assert yardstick(moved) == pytest.approx(yardstick(LOGITS), abs=1)  # a grain


def test_an_image_whose_logits_are_equal_is_measured_by_the_others() -> None:
    logits = np.concatenate([LOGITS, np.full((1, 5), 3.0, np.float32)])
    assert yardstick(logits)[-1] == np.median(np.append(np.ptp(LOGITS.astype(np.float64), axis=1), 0))
    assert (yardstick(np.full((3, 5), 3.0, np.float32)) == 0).all()


def test_numbers_that_are_none() -> None:
    odd = LOGITS.copy()
    odd[0, 1], odd[1, 2], odd[2, 3] = np.nan, np.inf, -np.inf
    assert np.isfinite(yardstick(odd)).all()
    assert yardstick(np.full((2, 5), np.nan, np.float32)).tolist() == [0.0, 0.0]
    assert np.isfinite(grain(odd)).all()
    assert (apart(odd, odd) == 0).all()
    assert np.isinf(apart(odd, LOGITS)[:3]).all()
    assert (apart(odd, LOGITS)[3:] == 0).all()
