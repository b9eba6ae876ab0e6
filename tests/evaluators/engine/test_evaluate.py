"""The evaluation engine: the record, resuming, what is refused, what is written."""

import csv
import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared import Victim
from victims import TwoClassLinear, as_torch, linear_split

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.common import UserError
from dgad_tk.data import load_dataset
from evaluators.attacks import ATTACKS
from evaluators.attacks.array_file import NOWHERE
from evaluators.attacks.result import SearchResult
from evaluators.engine import work
from evaluators.engine.evaluate import evaluate
from evaluators.engine.record import Evaluation
from evaluators.engine.search import Chunk, search, unit_of
from evaluators.plan.rows import Surrogate, plan
from evaluators.plan.suites import SUITES, expand
from evaluators.report.files import results, write
from evaluators.results import read_results
from evaluators.target.judge import judge

engine: Any = importlib.import_module("evaluators.engine.evaluate")  # the package names its function the same
EPS = 0.05


def run(predictor: Predictor, names: list[str] | None = None, **options: Any) -> Evaluation:
    split = options.pop("split", None) or load_dataset("digits").test.subset(options.pop("n", 40))
    eps = options.pop("eps", [EPS])
    names, surrogates = names or ["fgsm", "pgd"], options.pop("surrogates", ())
    settings = {"cw2": {"max_iter": 50}} if "cw2" in names else {}
    planned = plan(names, norm="linf", eps=eps, surrogates=surrogates, settings=settings)
    return evaluate(predictor, split, planned, **options)


@pytest.fixture
def predictor(victim: Victim) -> Predictor:
    return as_torch(victim[0], (1, 8, 8))


def test_results_follow_the_schema(predictor: Predictor, tmp_path: Path) -> None:
    evaluation = run(predictor, ["fgsm", "pgd", "cw2"], eps=[0.02, EPS])
    document = results(evaluation, command="dgad attack", dataset="digits", split="test")
    write(evaluation, document, tmp_path)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read == json.loads(json.dumps(document.to_dict()))
    assert read_results(tmp_path) == document
    assert read["schema"] == "dgad/results/1"
    assert set(read) == {
        *("schema", "created", "command", "model", "dataset", "threat", "seed", "clean"),
        *("attacks", "worst_case", "curves", "twin", "checks", "environment", "gates", "uncompared"),
    }
    assert [row["id"] for row in read["attacks"]] == ["fgsm@0.02", "fgsm@0.05", "pgd@0.02", "pgd@0.05", "cw2"]
    for row in read["attacks"]:
        assert set(row) == {
            *(
                "id",
                "name",
                "kind",
                "source",
                "autoattack",
                "surrogate",
                "norm",
                "eps",
                "params",
                "robust_accuracy",
                "robust",
                "n",
            ),
            *(
                "ci95",
                "success",
                "failed",
                "median_l2",
                "median_distance",
                "seconds",
                "forward_passes",
                "backward_passes",
                "status",
            ),
            *("reason", "flags", "accuracy", "reused", "stages", "description"),
        }
        assert row["forward_passes"] > 0
    budget, cw2 = read["attacks"][3], read["attacks"][4]
    assert budget["robust_accuracy"] == budget["robust"] / 40
    assert budget["ci95"][0] < budget["robust_accuracy"] < budget["ci95"][1]
    assert (cw2["robust_accuracy"], cw2["eps"], cw2["norm"]) == (None, None, "l2")
    assert cw2["success"] + cw2["failed"] == pytest.approx(1)
    assert [worst["eps"] for worst in read["worst_case"]] == [0.02, EPS]

    with np.load(tmp_path / "samples.npz") as samples:
        assert np.array_equal(samples["index"], load_dataset("digits").test.index[:40])
        robust = samples["robust/pgd@0.05"] & samples["robust/fgsm@0.05"]
        assert robust.sum() == read["worst_case"][1]["robust"]
        assert np.array_equal(samples["adv_pred/pgd@0.05"] == -1, samples["clean_pred"] != samples["label"])
        assert np.nanmax(samples["linf/pgd@0.05"]) <= EPS
        assert "l2/cw2" in samples
    with np.load(tmp_path / "gallery.npz") as gallery:
        gap = np.abs(gallery["adversarial"].astype(np.float64) - gallery["clean"]).max(axis=(1, 2, 3))
        rows = gallery["row"]
        assert (gap[rows == "pgd@0.05"] <= EPS).all()
        assert (gallery["adv_pred"] != gallery["label"]).all()
        for image, prediction in zip(gallery["adversarial"], gallery["adv_pred"], strict=True):
            assert predictor.predict(image[None]).argmax() == prediction
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == [row["id"] for row in read["attacks"]]


def test_the_runtime_judges_not_the_module(predictor: Predictor) -> None:
    """A runtime that answers right whatever comes: nothing counts as broken, though the module is fooled."""
    split = load_dataset("digits").test.subset(30)
    clean = split.take(slice(None)) / np.float32(255)
    truth = predictor.predict(clean).argmax(1)

    def stubborn(images: np.ndarray) -> np.ndarray:
        logits = predictor.predict(images)
        nearest = [int(np.abs(clean - image).sum(axis=(1, 2, 3)).argmin()) for image in images]
        return np.where(np.arange(10) == truth[nearest][:, None], np.abs(logits).max() + 1, logits).astype(np.float32)

    calm = predictor.predict(clean)
    honest = run(predictor, ["pgd"], split=split, eps=[0.2])
    assert honest.outcomes[0].unit is not None
    assert honest.outcomes[0].unit.broken.any()
    answers = judge(replace(predictor, predict=stubborn), clean, 8)
    assert np.array_equal(answers.predicted, calm.argmax(1))
    row, right = honest.outcomes[0].row, honest.clean_right
    chunk, target = Chunk(clean, split.labels, split.index, right), replace(predictor, predict=stubborn)
    found = search(target, row, chunk, seed=0, batch_size=8, halfway=NOWHERE)
    for judging, broken in ((predictor, True), (target, False)):
        unit = unit_of(judging, row, chunk, found.only(right), batch_size=8, gallery=True)
        assert unit.broken.any() == broken


def test_non_finite_logits_count_as_broken(predictor: Predictor) -> None:
    def breaks(images: np.ndarray) -> np.ndarray:
        logits = predictor.predict(images)
        logits[np.abs(images * 255 - np.round(images * 255)).max(axis=(1, 2, 3)) > 1e-3] = np.nan
        return logits

    evaluation = run(replace(predictor, predict=breaks), ["pgd"])
    assert evaluation.outcomes[0].unit is not None
    assert evaluation.outcomes[0].unit.broken.sum() == evaluation.clean_right.sum()


def test_an_evaluation_goes_on_where_it_stopped(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHUNK", 16)
    runs: list[str] = []
    original, order = work.search, load_dataset("digits").test.index.tolist()

    def counted(source: Any, row: Any, chunk: Any, **options: Any) -> Any:
        runs.append(f"{row.id}@{order.index(chunk.index[0]) // 16 * 16}")
        return original(source, row, chunk, **options)

    monkeypatch.setattr(work, "search", counted)
    whole = run(predictor, n=48)
    assert len(runs) == 6

    class Killed(Exception):
        pass

    def kill(progress: Any) -> None:
        if len(runs) == 6 + 4:
            raise Killed

    with pytest.raises(Killed):
        run(predictor, n=48, store=tmp_path, on_progress=kill)
    resumed = run(predictor, n=48, store=tmp_path)
    assert runs[6:] == ["fgsm@0", "fgsm@16", "fgsm@32", "pgd@0", "pgd@16", "pgd@32"]
    for ours, theirs in zip(resumed.outcomes, whole.outcomes, strict=True):
        assert ours.unit is not None
        assert theirs.unit is not None
        assert np.array_equal(ours.unit.broken, theirs.unit.broken)
        np.testing.assert_array_equal(ours.unit.linf, theirs.unit.linf)

    runs.clear()
    run(predictor, n=64, store=tmp_path)
    assert runs == ["fgsm@48", "pgd@48"]  # more images: only the new ones
    runs.clear()
    run(predictor, n=64, store=tmp_path, seed=1)
    assert len(runs) == 8  # another question
    for number, unit in enumerate(sorted(tmp_path.glob("*.npz"))):
        content = bytearray(unit.read_bytes())
        content[len(content) // 3 :: 7] = b"?" * len(content[len(content) // 3 :: 7])
        unit.write_bytes(content if number % 2 else b"damaged")
    runs.clear()
    run(predictor, n=64, store=tmp_path)
    assert len(runs) == 8


def test_units_need_a_model_that_can_be_told_apart(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="with a sha256"):
        run(replace(predictor, sha256=""), store=tmp_path)


def test_chunks_do_not_change_the_record(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(predictor)
    monkeypatch.setattr(engine, "CHUNK", 7)
    parts = run(predictor)
    for ours, theirs in zip(parts.outcomes, whole.outcomes, strict=True):
        assert ours.unit is not None
        assert theirs.unit is not None
        assert np.array_equal(ours.unit.broken, theirs.unit.broken)


def test_transfer_examples_are_made_on_the_surrogate(predictor: Predictor) -> None:
    surrogates = [Surrogate("itself", predictor), Surrogate("none", None, "there was no training split")]
    evaluation = run(predictor, ["pgd", "transfer:pgd"], surrogates=surrogates)
    white, same, missing = evaluation.outcomes
    assert (same.row.id, same.row.source) == ("transfer:itself:pgd", "transfer")
    assert white.unit is not None
    assert same.unit is not None
    assert np.array_equal(white.unit.broken, same.unit.broken)
    assert missing.unit is None
    document = results(evaluation, command="", dataset="digits", split="test")
    assert document.attacks[2].status == "skipped"
    assert document.attacks[2].reason == "there was no training split"


def test_a_chunk_without_a_right_image(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to attack there, and no crash; the record stays whole."""
    monkeypatch.setattr(engine, "CHUNK", 4)
    split = load_dataset("digits").test.subset(9)
    wrong = split.labels.copy()
    wrong[4:] = (wrong[4:] + 1) % 10
    evaluation = run(predictor, ["fgsm", "pgd", "cw2"], split=type(split)(split.base, split.index, wrong))
    for outcome in evaluation.outcomes:
        assert outcome.unit is not None
        assert not outcome.unit.attacked[4:].any()
        assert outcome.unit.l2.shape == (9,)


def test_the_worst_case_is_only_known_where_an_attack_ran(predictor: Predictor) -> None:
    evaluation = run(predictor, ["pgd"])
    assert evaluation.worst_case(EPS) < evaluation.clean_accuracy
    with pytest.raises(ValueError, match="no budget attack ran at eps 0.3"):
        evaluation.worst_case(0.3)


def test_rows_have_names_of_their_own(predictor: Predictor) -> None:
    for eps in ([0.1, 0.1], [0.1, 0.10001]):
        with pytest.raises(UserError, match="two rows would be called 'pgd@0.1'"):
            plan(["pgd"], norm="linf", eps=eps)
    with pytest.raises(UserError, match="two rows would be called"):
        plan(["transfer:pgd"], norm="linf", eps=[0.1], surrogates=[Surrogate("a", predictor)] * 2)


@pytest.mark.parametrize("eps", [0.0, -0.1, 1e8, math.inf, math.nan])
def test_radii_are_distances(eps: float) -> None:
    """Results with another radius could not be read back."""
    with pytest.raises(UserError, match="eps must be above 0 and at most 1e"):
        plan(["pgd"], norm="l2", eps=[0.1, eps])


def test_a_model_that_answers_nan_is_refused(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="logits that are not finite"):
        run(replace(predictor, predict=lambda images: predictor.predict(images) * np.float32(np.nan)))


def test_a_poor_surrogate_is_skipped_with_the_reason(predictor: Predictor) -> None:
    class Guess(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10) + 0.0 * x.flatten(1)[:, :1]

    guess = as_torch(Guess(), (1, 8, 8))
    evaluation = run(predictor, ["transfer:fgsm"], surrogates=[Surrogate("guess", guess)])
    assert "surrogate guess is right on" in evaluation.outcomes[0].reason


def test_a_module_that_differs_from_the_runtime_is_refused(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="differs from the runtime"):
        run(replace(predictor, predict=lambda images: predictor.predict(images) + np.float32(0.1)))


def test_images_that_do_not_fit() -> None:
    predictor = as_torch(TwoClassLinear())
    with pytest.raises(UserError, match=r"takes images of shape \(1, 6, 6\).*the dataset has \(1, 8, 8\)"):
        run(predictor)
    split = linear_split()
    labels = split.labels.copy()
    labels[0] = 2
    with pytest.raises(UserError, match="the model has 2 classes, the dataset has a label 2"):
        run(predictor, split=type(split)(split.base, split.index, labels))


def test_an_attack_that_changes_nothing_is_marked(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        def run(self, x: np.ndarray, y: np.ndarray, **more: Any) -> SearchResult:
            return SearchResult(x)

    idle = replace(ATTACKS["fgsm"], build=lambda *arguments: Idle())  # type: ignore[arg-type,return-value]
    monkeypatch.setitem(ATTACKS, "fgsm", idle)
    evaluation = run(predictor, ["fgsm"])
    assert evaluation.outcomes[0].flags == ["unreliable: the attack changed under 1 % of the attacked images"]


def test_what_an_attack_returns_is_brought_into_the_ball(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cheat:
        def run(self, x: np.ndarray, y: np.ndarray, **more: Any) -> SearchResult:
            cheating = 1 - x
            cheating[0] = np.nan
            return SearchResult(cheating)

    cheat = replace(ATTACKS["fgsm"], build=lambda *arguments: Cheat())  # type: ignore[arg-type,return-value]
    monkeypatch.setitem(ATTACKS, "fgsm", cheat)
    unit = run(predictor, ["fgsm"]).outcomes[0].unit
    assert unit is not None
    assert np.nanmax(unit.linf) <= EPS
    assert unit.linf[unit.attacked][0] == 0


def test_suites_name_attacks_that_exist() -> None:
    assert expand(["full"]) == ["fgsm", "pgd", "cw2", "autoattack", "transfer:fgsm", "transfer:pgd", "transfer:jsma"]
    assert {name.removeprefix("transfer:") for suite in SUITES for name in expand([suite])} <= set(ATTACKS)
    assert expand(["fast"], ["pgd", "cw2"]) == ["fgsm", "pgd", "cw2"]
    with pytest.raises(UserError, match="unknown suite 'ful' .did you mean 'full'"):
        expand(["ful"])
    with pytest.raises(UserError, match="unknown attack 'pgdd'"):
        expand([], ["transfer:pgdd"])
    with pytest.raises(UserError, match="has no norm"):
        plan(["fgsm"], norm="l1", eps=[0.1])  # type: ignore[arg-type]


def test_numbers_in_json_are_finite(predictor: Predictor) -> None:
    document = results(run(predictor, ["cw2"]), command="", dataset="digits", split="test")
    json.dumps(document.to_dict(), allow_nan=False)
    assert math.isfinite(document.clean.accuracy)
