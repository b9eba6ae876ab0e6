"""Answers that are not finite, clean or under attack: wrong everywhere, whatever their largest logit is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shared import Victim
from victims import as_torch

from dgad_tk.answers.doubts import NONE, NOT_ATTACKED, NOT_FINITE
from dgad_tk.data import load_dataset
from evaluators.engine.evaluate import evaluate
from evaluators.engine.record import Evaluation
from evaluators.plan.rows import plan
from evaluators.report.evaluation.classes import broken, taken_for
from evaluators.report.evaluation.page import write_report
from evaluators.report.evidence import read_evidence
from evaluators.report.files import results, write
from evaluators.verdict.comparison.compare import comparison
from evaluators.verdict.records import read_record

N = 40


@pytest.fixture
def odd(victim: Victim) -> Evaluation:
    """+inf at the label of the first clean images; under attack +inf at the label, or NaN, of every second one."""
    predictor, split = as_torch(victim[0], (1, 8, 8)), load_dataset("digits").test.subset(N)
    clean = split.take(slice(None)) / np.float32(255)

    def predict(images: np.ndarray) -> np.ndarray:
        logits = predictor.predict(images).copy()
        for row, image in zip(logits, images, strict=True):
            far = np.abs(clean - image).max(axis=(1, 2, 3))
            at = int(far.argmin())
            if far[at] == 0 and at < 3:
                row[split.labels[at]] = np.inf
            elif far[at] > 0 and at % 2:
                row[split.labels[at]] = np.inf if at % 4 == 1 else np.nan
        return logits

    rows = plan(["fgsm", "pgd"], norm="linf", eps=[0.2])
    return evaluate(replace(predictor, predict=predict), split, rows, classes=tuple("0123456789"))


def test_files_agree_on_what_is_right(odd: Evaluation, tmp_path: Path) -> None:
    found = results(odd, command="", dataset="digits", split="test")
    write(odd, found, tmp_path)
    assert found.clean.non_finite == 3
    with np.load(tmp_path / "samples.npz") as samples:
        label, clean, under = samples["label"], samples["clean_pred"], samples["adv_pred/pgd"]
    assert (clean[:3] == NONE).all()
    assert (clean[3:] >= 0).all()
    assert int((clean == label).sum()) == found.clean.correct
    attacked = clean == label
    assert np.array_equal(under == NOT_ATTACKED, ~attacked)
    assert np.array_equal(under == NOT_FINITE, attacked & (np.arange(N) % 2 == 1))
    with np.load(tmp_path / "gallery.npz") as gallery:
        assert (gallery["adv_pred"] == NOT_FINITE).any()
        assert (gallery["adv_pred"] != gallery["label"]).all()
    record = read_record(tmp_path)
    assert int(record.clean.sum()) == found.clean.correct
    assert int(record.robust["pgd"].sum()) == found.attacks[1].robust
    assert set(record.attacked["pgd"][:3]) == {NONE}
    assert set(record.attacked["pgd"][attacked & (np.arange(N) % 2 == 1)]) == {NONE}


def test_the_report_counts_them_as_broken(odd: Evaluation, tmp_path: Path) -> None:
    found = results(odd, command="", dataset="digits", split="test")
    write(odd, found, tmp_path)
    evidence = read_evidence(tmp_path)
    assert evidence.samples is not None
    pgd = found.attacks[1]
    assert pgd.robust is not None
    assert int(broken(evidence.samples, "pgd").sum()) == found.clean.correct - pgd.robust
    taken = taken_for(evidence)
    assert taken is not None
    assert taken.heat is not None
    assert taken.heat.columns[-1] == "no answer"
    assert sum(int(cells[-1].text or 0) for _, cells in taken.heat.rows) > 0
    page = write_report([evidence], tmp_path / "report.html").read_text()
    assert "became no answer" in page
    assert "no answer" in page


def test_a_comparison_calls_them_no_finite_answer(odd: Evaluation, tmp_path: Path) -> None:
    """With a record whose model has finite answers, which are right, wherever this one has none."""
    write(odd, results(odd, command="", dataset="digits", split="test"), tmp_path)
    record = read_record(tmp_path)
    held = dict.fromkeys(record.robust, record.clean | (record.answer == NONE))
    calm = replace(
        record,
        clean=record.clean | (record.answer == NONE),
        robust=held,
        answer=np.where(record.answer == NONE, record.label, record.answer),
        attacked={key: np.where(held[key], record.label, each) for key, each in record.attacked.items()},
    )
    (pair,) = comparison([calm, record], ["calm", "odd"]).pairs
    answers = {test.name: [each.answer for each in test.changes] for test in pair.tests}
    assert answers["clean"] == ["no finite answer"] * 3
    assert answers["pgd"].count("no finite answer") == 3 + int((record.attacked["pgd"][3:] == NONE).sum())
    assert answers["pgd"].count("no finite answer") > 3
    (pair,) = comparison([record, record], ["odd", "odd"]).pairs
    assert not any(test.changes for test in pair.tests)
