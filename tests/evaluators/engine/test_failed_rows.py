"""Another library's attack that raises: its row fails with a reason, the others and the worst case do not notice."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from victims import TwoClassLinear, as_torch, linear_split

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.common import UserError
from evaluators.attacks.result import SearchResult
from evaluators.engine.evaluate import evaluate
from evaluators.engine.record import Evaluation
from evaluators.plan.rows import Row, plan
from evaluators.report.files import results, write
from evaluators.report.junit import write_junit
from evaluators.verdict.checks import check
from evaluators.verdict.gate import thresholds

engine: Any = importlib.import_module("evaluators.engine.evaluate")  # the package names its function the same
EPS = (0.02, 0.05)


class Raising:
    """Works on so many calls, then raises, or answers with what is no batch of images."""

    def __init__(self, calls: list[int], ends_with: Any) -> None:
        self.calls, self.ends_with = calls, ends_with

    def run(self, x: np.ndarray, y: np.ndarray, **more: Any) -> SearchResult:
        self.calls[0] -= 1
        if self.calls[0] >= 0:
            return SearchResult(x)
        if isinstance(self.ends_with, BaseException):
            raise self.ends_with
        return SearchResult(self.ends_with)


def with_raising(ends_with: Any, works: int = 0, *, foreign: bool = True) -> list[Row]:
    """Rows of PGD, and of an attack that raises after `works` calls, at two radii each."""
    rows = plan(["art:pgd", "pgd"], norm="linf", eps=EPS)
    calls = [works]

    def build(estimator: Any, budget: Any, params: Mapping[str, Any]) -> Any:
        return Raising(calls, ends_with)

    return [
        replace(row, spec=replace(row.spec, build=build, foreign=foreign)) if row.attack == "art:pgd" else row
        for row in rows
    ]


@pytest.fixture
def predictor() -> Predictor:
    return as_torch(TwoClassLinear())


def run(predictor: Predictor, rows: list[Row], n: int = 40, **more: Any) -> Evaluation:
    return evaluate(predictor, linear_split(n), rows, **more)


@pytest.mark.parametrize(
    ("ends_with", "said"),
    [
        (ValueError("step size 0 in\nsome line"), "ValueError: step size 0 in"),
        (RuntimeError(), "RuntimeError: RuntimeError"),
        (MemoryError("too large"), "MemoryError: too large"),
        (AssertionError(), "AssertionError"),
        (None, "TypeError|ValueError"),
        (np.zeros((3, 1, 6, 6)), r"ValueError: it answered images of shape .* with \(3, 1, 6, 6\)"),
    ],
)
def test_a_row_that_raises_fails_alone(ends_with: Any, said: str, predictor: Predictor) -> None:
    evaluation = run(predictor, with_raising(ends_with))
    alone = run(predictor, plan(["pgd"], norm="linf", eps=EPS))
    document = results(evaluation, command="", dataset="digits", split="test")
    entries = {entry.id: entry for entry in document.attacks}
    for eps in ("0.02", "0.05"):
        entry = entries[f"art:pgd@{eps}"]
        assert (entry.status, entry.robust, entry.n) == ("failed", None, 40)
        assert re.search(said, entry.reason)
        assert entries[f"pgd@{eps}"].status == "done"
    assert [evaluation.worst_case(eps) for eps in EPS] == [alone.worst_case(eps) for eps in EPS]
    checks = check(evaluation)
    assert checks.verdict != "high"
    assert sum("art:pgd@0.02 failed" in item.detail and item.verdict == "warn" for item in checks.items) == 1


def test_our_own_attacks_keep_their_traceback(predictor: Predictor) -> None:
    with pytest.raises(ZeroDivisionError):
        run(predictor, with_raising(ZeroDivisionError("ours"), foreign=False))


@pytest.mark.parametrize("error", [UserError("not installed", hint="pip"), KeyboardInterrupt()])
def test_what_the_user_has_to_know_is_no_failed_row(error: BaseException, predictor: Predictor) -> None:
    with pytest.raises(type(error)):
        run(predictor, with_raising(error))


def test_the_second_chunk_fails_the_whole_row_and_a_second_try_keeps_the_first(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "CHUNK", 16)
    predictor = replace(predictor, sha256="0" * 64)
    rows = with_raising(ValueError("no"), works=1)
    evaluation = run(predictor, rows, store=tmp_path)
    assert [outcome.status for outcome in evaluation.outcomes] == ["failed", "failed", "done", "done"]
    again = run(predictor, with_raising(ValueError("no"), works=5), store=tmp_path)
    assert [outcome.status for outcome in again.outcomes] == ["done"] * 4  # 3 chunks at 2 radii, one was kept


def test_a_radius_that_failed_does_not_take_a_larger_one_along(predictor: Predictor) -> None:
    rows = with_raising(None)

    def build(estimator: Any, budget: Any, params: Mapping[str, Any]) -> Any:
        return Raising([1 if budget.eps == max(EPS) else 0], ValueError("only at the small one"))

    rows = [replace(row, spec=replace(row.spec, build=build)) if row.spec.foreign else row for row in rows]
    evaluation = run(predictor, rows)
    assert [outcome.status for outcome in evaluation.outcomes] == ["failed", "done", "done", "done"]


def test_gates_and_files_know_of_it(predictor: Predictor, tmp_path: Path) -> None:
    rows = with_raising(ValueError("no"))
    evaluation = run(predictor, rows)
    document = results(evaluation, command="", dataset="digits", split="test")
    found = thresholds({"art:pgd": Fraction(1, 100), "worst-case": Fraction(0)}, document)
    assert [gate.passed for gate in found] == [False] * 4
    assert {gate.got for gate in found} == {"failed"}
    write(evaluation, document, tmp_path)
    write_junit([document], tmp_path / "junit.xml")
    assert 'type="failed"' in (tmp_path / "junit.xml").read_text()
    assert "failed,ValueError: no" in (tmp_path / "results.csv").read_text()
