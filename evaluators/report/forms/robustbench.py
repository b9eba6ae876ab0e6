"""Results of one model as RobustBench's `model_info` JSON, https://github.com/RobustBench/robustbench/tree/master/model_info.

The file's keys and the type of their values (percentages as text) are those of the entries there. What an evaluation
does not know is null: nothing is guessed.
"""

import html
import json
from collections.abc import Sequence
from typing import Any

from dgad_tk.common import UserError
from dgad_tk.strangers.number_text import format_fraction
from evaluators.report.pages.words import count, plain
from evaluators.results import Attack, Results

MARK = "by dgad-tk"
ATTACK = "autoattack"
_NORMS = {"linf": "Linf", "l2": "L2"}
_TEST: dict[str, int | None] = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": None}
"""Datasets of the leaderboards, and how many images each has where that is known."""


def robustbench(results: Sequence[Results]) -> str:
    """The entry of one model.

    Raises:
        UserError: several models, or no AutoAttack over all images at one radius.
    """
    return json.dumps(_entry(results), indent=2) + "\n"


def robustbench_notes(results: Sequence[Results]) -> list[str]:
    """Which facts are missing, and where the file belongs."""
    row = _autoattack(results)
    missing = [key for key, value in _entry(results).items() if value is None]
    notes = [f"not known from an evaluation, and null: {', '.join(missing)}"]
    norm, dataset, n = _NORMS.get(row.norm), results[0].dataset.name, results[0].dataset.n
    if dataset not in _TEST:
        notes.append(f"RobustBench has no '{plain(dataset)}': for your own use")
    elif norm is None:
        notes.append(f"RobustBench has no leaderboard for {plain(row.norm)}: for your own use")
    else:
        notes.append(f"it belongs in model_info/{plain(dataset)}/{norm}/")
    whole = _TEST.get(dataset)
    if whole is None:
        notes.append(f"its figures are of {count(n, 'image')}")
    elif n < whole:
        notes.append(f"leaderboards count all {whole:,} test images; this is of {count(n, 'image')}")
    if results[0].checks.verdict != "high":
        notes.append(f"the evaluation's own verdict is {results[0].checks.verdict}; the form knows only `unreliable`")
    return notes


def _entry(results: Sequence[Results]) -> dict[str, Any]:
    row, found = _autoattack(results), results[0]
    record = found.model.metadata or {}
    version = found.environment.get("dgad-tk", "")
    dataset = html.escape(plain(found.dataset.name))
    made = f"AutoAttack {MARK} {plain(version)}".strip()  # the leaderboard takes the footnote for HTML
    made += "".join(f", {plain(key)} {plain(value)}," for key, value in row.params.items())
    return {
        "link": None,
        "name": None,
        "authors": None,
        "additional_data": None,
        "number_forward_passes": None,
        "dataset": plain(found.dataset.name),
        "venue": None,
        "architecture": record.get("model") or None,
        "eps": format_fraction(row.eps or 0.0),
        "clean_acc": _percent(found.clean.accuracy),
        "reported": None,
        "autoattack_acc": _percent(row.robust_accuracy or 0.0),
        "footnote": f"{html.escape(made)} on {row.n} images of {dataset}.",
        "unreliable": found.checks.verdict == "unreliable",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _autoattack(results: Sequence[Results]) -> Attack:
    if len(results) > 1:
        raise UserError(f"a model_info file is of one model, got {len(results)} results", hint="name one of them")
    found = results[0]
    rows = [row for row in found.attacks if row.name == ATTACK and row.surrogate is None and row.status == "done"]
    whole = [row for row in rows if row.n == found.dataset.n and row.eps is not None]
    if not whole:
        others = list(dict.fromkeys(row.name for row in found.attacks if row.name != ATTACK and row.standing != "no"))
        instead = f"; {', '.join(others)} is another attack" if others else ""
        raise UserError(
            f"'{found.model.path}' has no AutoAttack over all images, which RobustBench ranks by{instead}",
            hint="dgad attack --attack autoattack",
        )
    if len(whole) > 1:
        radii = ", ".join(format_fraction(row.eps or 0.0) for row in whole)
        raise UserError(
            f"'{found.model.path}' has AutoAttack at {radii}, and a model_info file holds one radius",
            hint="attack with one --eps",
        )
    return whole[0]
