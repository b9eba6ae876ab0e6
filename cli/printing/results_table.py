"""The tables that `dgad attack` and `dgad gate` print."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.printing.terminal import Heading, plain_table, say
from dgad_tk.strangers.number_text import format_fraction

if TYPE_CHECKING:
    from evaluators.curves import Curve
    from evaluators.results import ClassShare, Interval, Results


def results_table(attacked: "Sequence[tuple[Results, Path]]") -> None:
    """Print one table of all evaluated models, what to doubt about them, and where the files are.

    Args:
        attacked: results, and the folder that they are in.
    """
    from evaluators.report.forms.facts import doubts

    several = len(attacked) > 1
    names: list[Heading] = [*(["model"] if several else []), "attack", "eps", "robust", "95 % interval", "success"]
    names += [("median L2", "L2"), ("seconds", "s")]
    rows = [[*([each.model.path] if several else []), *cells] for each, _ in attacked for cells in _rows(each)]
    plain_table(names, rows, left=3 if several else 2)
    for results, folder in attacked:
        where = f"{results.model.path}: " if several else ""
        for line in _more(results):
            say(f"{where}{line}")
        say(f"{where}believable: {results.checks.verdict}")
        for about, text in doubts(results):
            say(f"  {about}: {text}", indent=4)
        for curve in results.curves:
            _curve_table(curve, where)
        say(f"{where}{folder}/results.json")


def _curve_table(curve: "Curve", where: str) -> None:
    """Robust accuracy at round radii, and at those where AutoAttack ran."""
    from dgad_tk.answers.doubts import wilson
    from evaluators.report.evaluation.curves import round_radii

    exact = {point.eps: point for point in curve.exact}
    names: list[Heading] = [
        f"{curve.norm.capitalize()} eps",
        f"at most, by {curve.row}",
        "AutoAttack",
        "95 % interval",
        "by",
    ]
    rows = []
    for eps in sorted({*round_radii(curve, about=8), *exact}):
        point = exact.get(eps)
        at_most = share_text(curve.at(eps) / curve.n)
        told = [share_text(point.robust_accuracy), interval_text(point.ci95), point.row] if point else ["", "", ""]
        rows.append([format_fraction(eps), at_most, *told])

    say(f"{where}robust accuracy against eps, an upper bound from one search on {curve.n:,} images:")
    columns = len(names) if exact else 2
    plain_table(names[:columns], [row[:columns] for row in rows])
    low, high = max((wilson(step.robust, curve.n) for step in curve.steps), key=lambda ends: ends[1] - ends[0])
    say(f"95 % intervals of these shares: ±{100 * (high - low) / 2:.1f} points or less")


def print_json(documents: Sequence[dict[str, Any]]) -> None:
    """Print one document as JSON, or a list of several."""
    print(json.dumps(documents if len(documents) > 1 else documents[0]))


def eps_text(eps: float | None) -> str:
    return "unbounded" if eps is None else format_fraction(eps)


def _more(results: "Results") -> list[str]:
    """What has no column: the worst classes, stages of ensembles, and accuracies that papers print without a ball."""
    from evaluators.plan.suites import SUITES
    from evaluators.report.forms.facts import distances

    lines = [_worst_class("clean", results.clean.classes)]
    lines += [_worst_class(f"under attack at {format_fraction(each.eps)}", each.classes) for each in results.worst_case]
    lines += [f"{name}: the median distance is {distance}" for name, distance in distances(results)]
    for row in results.attacks:
        if row.stages:
            stages = ", ".join(f"{stage.name} {stage.broken:,}" for stage in row.stages)
            lines.append(f"{row.id} broke by stage: {stages}")
        if row.accuracy is not None and row.name in SUITES["paper"] and row.surrogate is None:
            lines.append(f"{row.id} left {row.accuracy:.1%} right, the accuracy that papers print")
    return lines


def _worst_class(when: str, classes: "Sequence[ClassShare]") -> str:
    """The class with the smallest share of right images, the first of several."""
    worst = min(classes, key=lambda each: each.right / each.n)
    share = f"{worst.right / worst.n:.1%} ({worst.right:,} of {worst.n:,})"
    return f"worst of {len(classes)} classes {when}: '{worst.class_}', {share}"


def _rows(results: "Results") -> list[list[str]]:
    rows = [["clean", "", share_text(results.clean.accuracy), "", "", "", ""]]
    for row in results.attacks:
        if row.status != "done":
            rows.append([row.id, eps_text(row.eps), row.status, "", "", "", ""])
            continue
        rows.append(
            [
                row.id if row.n == results.dataset.n else f"{row.id} (first {row.n:,})",
                eps_text(row.eps),
                share_text(row.robust_accuracy),
                interval_text(row.ci95),
                share_text(row.success),
                "" if row.median_l2 is None else f"{row.median_l2:.3f}",
                f"{row.seconds:.1f}",
            ]
        )
    for worst in results.worst_case:
        share, interval = share_text(worst.robust_accuracy), interval_text(worst.ci95)
        rows.append([f"worst case {worst.norm}", format_fraction(worst.eps), share, interval, "", "", ""])
    return rows


def share_text(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def interval_text(ends: "Interval | None") -> str:
    return "" if ends is None else f"{ends[0]:.1%} to {ends[1]:.1%}"


def print_gates(judged: "Sequence[Results]") -> None:
    """Print a line for each demand on each model."""
    for results in judged:
        where = f"{results.model.path}: " if len(judged) > 1 else ""
        for gate in results.gates:
            verdict = "passed" if gate.passed else "FAILED"
            say(f"{where}gate {gate.name} {verdict}: {gate.got}, required is {gate.required}")
            if gate.detail:
                say(f"  {gate.detail}", indent=4)
        if results.uncompared:
            say(f"{where}not compared, since the baseline has no answer: {', '.join(results.uncompared)}")
