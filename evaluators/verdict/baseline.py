"""Comparison with an earlier evaluation: rows with the same question, paired image by image."""

from fractions import Fraction

import numpy as np

from dgad_tk.strangers.number_text import format_fraction
from evaluators.results import Gate
from evaluators.verdict.gate import CLEAN, WORST_CASE, percent
from evaluators.verdict.paired import CHANCE, paired
from evaluators.verdict.records import Question, Record, Right, same_questions, shared_places

CALLED = ("this evaluation", "--baseline")
"""What the two are to the user."""


def compare(new: Record, old: Record, max_drop: Fraction | None) -> list[Gate]:
    """Compare clean accuracy, each row that both have, and the worst case over these rows, on the images that both saw.

    The worst case at a radius is over the rows up to that radius; a single attack is its own worst case.

    With `max_drop`, a gate fails if accuracy fell by more than that on these images, whether by chance or not: with few
    images hardly any drop is significant, so a test of significance would pass nearly everything. Without `max_drop`, a
    gate fails if accuracy fell by more than chance explains: exact McNemar test, p < 0.05. The detail of a gate has p
    and the interval in both cases.

    Raises:
        UserError: the baseline is of another dataset, norm, eps, attack or setting, or saw other images.
    """
    same_questions(new, old, CALLED)
    ours, theirs = shared_places(new, old, CALLED)
    gates = [_compared(CLEAN, new.clean[ours], old.clean[theirs], max_drop)]
    shared: list[tuple[Question, tuple[Right, Right]]] = []
    for question, row in new.rows.items():
        known = old.rows.get(question)
        if known is None or known.id not in old.robust:
            continue
        if row.id not in new.robust:
            reason = f"{row.status}: {row.reason}"
            gates.append(Gate(_name(row.id), False, _required(max_drop), "no answer", reason))
            continue
        asked = (ours < row.n) & (theirs < known.n)
        pair = new.robust[row.id][ours[asked]], old.robust[known.id][theirs[asked]]
        if asked.any():
            gates.append(_compared(row.id, *pair, max_drop))
        if asked.all():
            shared.append((question, pair))
    radii = list(dict.fromkeys(question[3] for question, _ in shared))
    for eps in radii:
        inside = [each for each in shared if each[0][3] <= eps]
        if len({question[:2] for question, _ in inside}) > 1:
            name = f"{WORST_CASE}@{format_fraction(eps)}" if len(radii) > 1 else WORST_CASE
            now, before = (np.logical_and.reduce(side) for side in zip(*(pair for _, pair in inside), strict=True))
            gates.append(_compared(name, now, before, max_drop))
    return gates


def uncompared(new: Record, old: Record) -> list[str]:
    """Ids of the budget rows that the baseline does not have."""
    answered = {question for question, row in old.rows.items() if row.id in old.robust}
    return [row.id for question, row in new.rows.items() if question not in answered]


def _compared(name: str, new: Right, old: Right, max_drop: Fraction | None) -> Gate:
    found = paired(old, new)
    drop = Fraction(found.only_first - found.only_second, found.n)
    by_chance = found.p >= CHANCE
    low, high = found.ci95
    got = f"{new.mean():.1%} after {old.mean():.1%}"
    got += f", {'a drop' if drop > 0 else 'a rise'} of {abs(float(drop)):.2%}" if drop else ", no change"
    detail = f"lost {found.only_first:,} and won {found.only_second:,} of {found.n:,} images, McNemar p = {found.p:.2g}"
    detail += f"; 95 % interval of the drop {low:.2%} to {high:.2%}"
    if drop and by_chance:
        detail += "; within chance"
    passed = drop <= max_drop if max_drop is not None else drop <= 0 or by_chance
    return Gate(_name(name), passed, _required(max_drop), got, detail)


def _name(name: str) -> str:
    return f"baseline:{name}"


def _required(max_drop: Fraction | None) -> str:
    return f"no drop beyond chance, p < {CHANCE}" if max_drop is None else f"a drop of at most {percent(max_drop)}"
