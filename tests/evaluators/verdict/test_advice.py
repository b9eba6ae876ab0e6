"""The table of advice: a row for each check, in plain words."""

import ast

import pytest
from shared import ROOT

from evaluators.verdict.advice import ADVICE, ROWS, Advice, action


def test_every_check_has_advice() -> None:
    """By the names that the checks themselves write."""
    names = set()
    for path in (ROOT / "evaluators" / "verdict").glob("*checks.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Item" and node.args:
                names |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    assert len(names) > 15
    assert names == set(ADVICE)


@pytest.mark.parametrize("advice", [*ADVICE.values(), *ROWS.values()], ids=[*ADVICE, *ROWS])
def test_each_is_a_clause_and_two_sentences(advice: Advice) -> None:
    assert not advice.holds.endswith(".")
    for sentence in (advice.action, advice.fault):
        assert sentence[0].isupper()
        assert sentence.endswith(".")


def test_rows_have_advice_by_their_status() -> None:
    assert action("rounding") == ADVICE["rounding"].action
    assert action("pgd") == ROWS["attack doubt"].action
    assert action("pgd", "failed") == ROWS["attack failed"].action
    assert action("pgd", "skipped") == ROWS["attack skipped"].action
