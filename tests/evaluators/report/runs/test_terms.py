"""The terms of every method have a line each on the page of its run."""

from typing import Any

import pytest
import torch
from torch import nn

from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods import ADDONS, METHODS, Batch, build_method
from evaluators.report.runs.curves import SHARES
from evaluators.report.runs.terms import TERMS, meaning

SHAPE = (4, 1, 4, 4)


def terms_of(method: str) -> set[str]:
    """What one step of it reports."""
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(16, 3)) for _ in range(2)]
    batch = Batch(torch.rand(SHAPE), torch.tensor([0, 1, 2, 0]), lambda kind: torch.zeros(SHAPE), 4)
    options: Any = {"alpha": 0.5} if method.startswith("adaad") else {}
    options |= {"saad.beta": 0.5} if method.endswith("+saad") else {}
    step = build_method(method, options).step(
        networks[0], networks[1], batch, ThreatModel(eps=0.1, step_size=0.1, steps=1)
    )
    return set(step.terms) - set(SHARES)


NAMES = [*METHODS, *(f"adaad+{name}" for name in ADDONS)]


@pytest.mark.parametrize("method", NAMES)
def test_every_term_has_a_meaning(method: str) -> None:
    for term in terms_of(method):
        assert meaning(method, term), term


def test_no_meaning_is_without_a_term() -> None:
    known = {"loss"} | {name for method in NAMES for term in terms_of(method) for name in _keys(method, term)}
    assert set(TERMS) <= known
    assert meaning("dgad", "term of another") == ""


def _keys(method: str, term: str) -> tuple[str, str]:
    return term, f"{method.partition('+')[0]}: {term}"
