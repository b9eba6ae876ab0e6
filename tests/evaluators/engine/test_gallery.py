"""What a report needs beside the counts: how sure answers are, and which images tell most."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shared import Victim, artifact
from torch import nn
from victims import as_torch

from dgad_tk.artifacts.machine import PACKAGES, ROOT, code_sha256, machine
from dgad_tk.artifacts.module_output import Last
from dgad_tk.artifacts.predictor import predictor_of_module
from dgad_tk.data import load_dataset
from evaluators.engine import search
from evaluators.engine.evaluate import evaluate
from evaluators.engine.search import telling
from evaluators.plan.rows import plan
from evaluators.report import files
from evaluators.report.evaluation.headline import strongest
from evaluators.target.judge import confidences, judge


def test_confidence_is_the_largest_probability() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (50, 7)).astype(np.float32)
    logits[0] = 1e30  # all equal: 1 in 7
    expected = torch.from_numpy(logits).double().softmax(dim=1).max(dim=1).values.numpy()
    assert confidences(logits) == pytest.approx(expected, rel=1e-6)
    assert confidences(logits)[0] == pytest.approx(1 / 7)


def test_probabilities_are_taken_as_they_are() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]], dtype=np.float32)
    assert confidences(probabilities).tolist() == [np.float32(0.7), 1.0]
    assert confidences(np.log(np.maximum(probabilities, 1e-30))) == pytest.approx([0.7, 1.0])


def test_the_logits_of_one_number_are_no_probabilities() -> None:
    """A logit of 1 is read as (0, 1): class 1 with the probability 1 / (1 + exp(-1))."""
    images = np.zeros((2, 1, 2, 2), np.float32)
    ones = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    ones[1].weight.data.zero_()
    ones[1].bias.data.fill_(1.0)
    given = predictor_of_module(ones, (1, 2, 2), format="torchscript", last=lambda _: Last("linear"))
    assert given.one_number
    assert judge(given, images, 2).confidence == pytest.approx([1 / (1 + np.exp(-1))] * 2)


def test_answers_that_are_no_numbers_have_no_confidence() -> None:
    logits = np.array([[np.nan, 1.0], [np.inf, 0.0], [1.0, 1.0]], dtype=np.float32)
    assert np.isnan(confidences(logits)).tolist() == [True, True, False]
    assert confidences(np.zeros((0, 3), np.float32)).shape == (0,)


def test_the_images_that_tell_most_come_first() -> None:
    """In turns the nearest, the surest, the least sure, and one of a class that was not there."""
    broken = np.array([1, 2, 4, 5, 6])
    distance = np.array([0, 9.0, 1.0, 0, 5.0, 6.0, 7.0])
    confidence = np.array([1, 0.5, 0.6, 1, 0.9, 0.2, 0.3], dtype=np.float32)
    labels = np.array([0, 0, 1, 1, 1, 1, 2])
    assert telling(broken, distance, confidence, labels).tolist() == [2, 4, 5, 1, 6]
    assert telling(broken[:0], distance, confidence, labels).tolist() == []


@pytest.mark.parametrize("trained", [0.1, 0.2])
def test_the_row_that_leads_the_page_has_most_images(
    victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: float
) -> None:
    """That at the radius the model was trained for, though more images break at the larger one."""
    ranked: list[int] = []
    own = search.telling

    def counted(broken: np.ndarray, *more: np.ndarray) -> np.ndarray:
        ranked.append(len(broken))
        return own(broken, *more)

    monkeypatch.setattr(search, "telling", counted)
    monkeypatch.setattr("evaluators.engine.evaluate.CHUNK", 60)
    monkeypatch.setattr(files, "GALLERY_LIMIT", 16)
    record = artifact(threat={"norm": "linf", "eps": trained, "step_size": 0.01, "steps": 10})
    predictor = replace(as_torch(victim[0], (1, 8, 8)), artifact=record)
    rows = plan(["fgsm", "pgd"], norm="linf", eps=[0.1, 0.2])
    evaluation = evaluate(predictor, load_dataset("digits").test.subset(120), rows, batch_size=10)
    assert len(ranked) == len(rows)  # the first chunk of each keeps images, and no other ranks any
    found = files.results(evaluation, command="", dataset="digits", split="test")
    files.write(evaluation, found, tmp_path)
    leading = strongest(found)
    assert leading is not None
    assert leading.eps == trained
    kept = next(len(unit.gallery) for row, unit in evaluation.done if row.id == leading.id)
    with np.load(tmp_path / "gallery.npz") as gallery:
        assert kept > 4
        assert (gallery["row"] == leading.id).sum() == min(16, kept)
        assert len(gallery["row"]) == 16


def test_the_hash_of_the_code_and_the_machine() -> None:
    assert len(code_sha256()) == 64
    assert all((ROOT / package / "__init__.py").is_file() for package in PACKAGES)
    found = machine()
    assert found["cores"] >= 1  # type: ignore[operator]
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"]
