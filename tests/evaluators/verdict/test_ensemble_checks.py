"""What ensembles tell by their stages, and what an INT8 file has to have been attacked with."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from shared import Victim
from victims import as_torch

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.data import load_dataset
from evaluators.engine.evaluate import evaluate
from evaluators.engine.record import Evaluation
from evaluators.plan.rows import plan
from evaluators.verdict.checks import check

N = 40
MAX = "autoattack-max"


@pytest.fixture
def predictor(victim: Victim) -> Predictor:
    return as_torch(victim[0], (1, 8, 8))


@pytest.fixture
def evaluation(predictor: Predictor) -> Evaluation:
    """FGSM's record, whose row the tests call by other names."""
    return evaluate(predictor, load_dataset("digits").test.subset(N), plan(["fgsm"], norm="linf", eps=[0.02]))


def _verdicts(evaluation: Evaluation, attack: str, stages: list[str], by: list[int], **changes: Any) -> dict[str, str]:
    """The checks of an evaluation in which `attack` broke the first images by the stages of these numbers."""
    outcome = evaluation.outcomes[0]
    assert outcome.unit is not None
    row = plan([attack], norm="linf", eps=[0.02])[0]
    broken_by = np.full(N, -1, dtype=np.int8)
    broken_by[: len(by)] = by
    unit = replace(outcome.unit, broken=broken_by >= 0, broken_by=broken_by, stages=stages)
    changed = replace(evaluation, outcomes=[replace(outcome, row=row, unit=unit)], **changes)
    return {item.name: item.verdict for item in check(changed).items}


def test_stages_beyond_autoattack_are_a_doubt_if_they_break_more_than_noise(evaluation: Evaluation) -> None:
    stages = ["apgd-ce", "square", "apgd-t straight"]
    few, many = _verdicts(evaluation, MAX, stages, [0, 2]), _verdicts(evaluation, MAX, stages, [0, 2, 2, 2, 2, 2, 2])
    assert (few["beyond autoattack"], few["last stage"]) == ("high", "high")
    assert (many["beyond autoattack"], many["last stage"]) == ("warn", "high")
    assert _verdicts(evaluation, MAX, stages, [0, 1, 1])["last stage"] == "warn"
    assert "beyond autoattack" not in _verdicts(evaluation, "autoattack", stages[:2], [0, 1])
    assert "last stage" not in _verdicts(evaluation, "autoattack-plus", stages, [0, 1, 1, 1])


def test_an_int8_file_is_believed_only_if_a_float32_sibling_was_searched_on(
    evaluation: Evaluation, predictor: Predictor
) -> None:
    stages = ["apgd-ce", "square"]
    alone = replace(predictor, precision="int8")
    beside = replace(alone, siblings={"fp32": predictor})
    rounded = replace(alone, siblings={"int8": alone})
    closed = replace(alone, siblings={"fp32": replace(predictor, module=None)})  # it has no gradients to search on
    for target, attack, expected in (
        (beside, MAX, "high"),
        (alone, MAX, "warn"),
        (rounded, MAX, "warn"),
        (closed, MAX, "warn"),
        (beside, "autoattack", "warn"),
    ):
        assert _verdicts(evaluation, attack, stages, [0], predictor=target)["quantised"] == expected
    assert "quantised" not in _verdicts(evaluation, "autoattack", stages, [0])
