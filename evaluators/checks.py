"""Is this evaluation believable? Signs that a number is too good (Carlini et al., 2019, https://arxiv.org/abs/1902.06705)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluators.record import IDLE, Evaluation, Outcome

Verdict = Literal["high", "warn", "unreliable"]
_ORDER: tuple[Verdict, ...] = ("high", "warn", "unreliable")
SLACK = 0.01
"""Differences of accuracy below this are noise."""


@dataclass(frozen=True)
class Item:
    """One check: `high` is nothing found."""

    name: str
    verdict: Verdict
    detail: str


def check(evaluation: Evaluation) -> tuple[Verdict, list[Item]]:
    """The worst verdict, and each check with its reason."""
    items = [*_of_model(evaluation), *_of_rows(evaluation)]
    worst: Verdict = max((item.verdict for item in items), key=_ORDER.index, default="high")
    return worst, items


def _of_model(evaluation: Evaluation) -> list[Item]:
    probes = evaluation.probes
    items: list[Item] = []
    guessing = 1 / evaluation.predictor.classes
    if evaluation.clean_accuracy <= guessing:
        detail = f"{evaluation.clean_accuracy:.1%} of clean images are right, no more than by guessing: "
        items.append(Item("clean", "unreliable", detail + "are labels and preprocessing those of its training?"))
    if not probes:
        return [*items, Item("gradients", "warn", "the model has no gradients: only black-box attacks ran")]
    probabilities = probes["looks_like_probabilities"] == 1
    items.append(
        Item(
            "logits",
            "warn" if probabilities else "high",
            "the outputs sum to 1: probabilities hide gradients" if probabilities else "outputs are logits",
        )
    )
    dead = max(probes["zero_gradients"], 1 - probes["finite_gradients"])
    items.append(
        Item(
            "gradients",
            "high" if dead == 0 else "warn" if dead < 0.1 else "unreliable",
            f"{dead:.1%} of clean images have a zero or non-finite input gradient",
        )
    )
    return items


def _of_rows(evaluation: Evaluation) -> list[Item]:
    items: list[Item] = []
    for eps in evaluation.eps:
        rows = {outcome.row.id: outcome for outcome in evaluation.outcomes if outcome.unit and outcome.row.eps == eps}
        white = {key: _robust(outcome) for key, outcome in rows.items() if outcome.row.source == "white-box"}
        own = {outcome.row.attack: outcome for outcome in rows.values() if outcome.row.surrogate is None}
        one, many = own.get("fgsm"), own.get("pgd")
        if one and many:
            gap = _robust(many) - _robust(one)
            items.append(
                Item(
                    "more steps",
                    "warn" if gap > SLACK else "high",
                    f"PGD leaves {_robust(many):.1%}, its single step {_robust(one):.1%}",
                )
            )
        black = {key: _robust(outcome) for key, outcome in rows.items() if outcome.row.source != "white-box"}
        if white and black:
            best_white, best_black = min(white, key=white.__getitem__), min(black, key=black.__getitem__)
            items.append(
                Item(
                    "white-box",
                    "unreliable" if black[best_black] < white[best_white] - SLACK else "high",
                    f"strongest without gradients {best_black} {black[best_black]:.1%}, "
                    f"with gradients {best_white} {white[best_white]:.1%}",
                )
            )
        elif black:
            items.append(Item("white-box", "warn", f"only {', '.join(black)} ran: its own gradients may find more"))
        elif white and evaluation.predictor.precision == "int8" and "autoattack" not in own:  # which ends with Square
            detail = "quantised layers only have estimated gradients, which can hide weakness; square did not run"
            items.append(Item("white-box", "warn", detail))
    for outcome in evaluation.outcomes:
        items += [Item(outcome.row.id, "warn", text) for text in (outcome.unit.warnings if outcome.unit else [])]
        if IDLE in outcome.flags:
            items.append(Item(outcome.row.id, "warn", IDLE))
    return items


def _robust(outcome: Outcome) -> float:
    assert outcome.unit is not None
    return float(np.mean(outcome.unit.attacked & ~outcome.unit.broken))
