"""Results as Markdown, for a pull request or an issue: one model in full, several side by side."""

from collections.abc import Sequence

from evaluators.report.forms.facts import (
    LIMITS,
    TERMS,
    Line,
    advised,
    distances,
    headline,
    lines,
    measured,
    same_images,
    side_by_side,
    weakest_classes,
)
from evaluators.report.forms.markup import code, prose, table
from evaluators.report.pages.words import interval, percent
from evaluators.results import Results

MARK = "<!-- dgad report -->"
MOST_NAMED = 5
"""Classes that share the lowest share and are named."""


def markdown(results: Sequence[Results]) -> str:
    """The headline, the verdict with its reasons, the rows, the weakest classes, the gates, how it was measured."""
    found = [MARK]
    if len(results) > 1:
        found += ["## Robustness, side by side", "", *_side_by_side(results), ""]
    for each in results:
        found += [f"{'###' if len(results) > 1 else '##'} Robustness of {code(each.model.path)}", ""]
        found += [f"**{prose(headline(each))}**", "", *verdict(each), ""]
        found += [*rows(each), ""] if len(results) == 1 else []
        found += [*distance_lines(each), *weakest_lines(each), "", *_gates(each)]
        found += ["<details><summary>How it was measured, and what it does not say</summary>", ""]
        found += [*(f"- {word}: {text}." for word, text in TERMS), *how(each), *(f"- {limit}" for limit in LIMITS)]
        found += ["", "</details>", ""]
    return "\n".join(found)


def verdict(results: Results) -> list[str]:
    """Whether the evaluation can be believed, and each reason for doubt with what to do."""
    reasons = [f"- {code(each.names)}: {prose(each.text)}. {prose(each.action)}" for each in advised(results)]
    return [f"Believable: **{results.checks.verdict}**", *(["", *reasons] if reasons else [])]


def rows(results: Results) -> list[str]:
    """The table of one model."""
    names = ["attack", "eps", "accuracy", "95 % interval, %", "success", "median L2"]
    return table(names, [_cells(line) for line in lines(results)])


def _cells(line: Line) -> list[str]:
    name = code(line.name) + (f" ({line.note})" if line.note else "")
    return [
        name,
        line.eps,
        "" if line.share is None else percent(line.share),
        "" if line.ci95 is None else interval(line.ci95),
        "" if line.success is None else percent(line.success),
        "" if line.median_l2 is None else f"{line.median_l2:.3f}",
    ]


def _side_by_side(results: Sequence[Results]) -> list[str]:
    body = [[code(name), prose(eps), *map(_one_cell, found)] for name, eps, found in side_by_side(results)]
    body.append(["believable", "", *(each.checks.verdict for each in results)])
    warning = [] if same_images(results) else ["**These are results on different images: they do not compare.**", ""]
    return [*warning, *table(["attack", "eps", *(code(each.model.path) for each in results)], body, left=2)]


def _one_cell(line: Line | None) -> str:
    if line is None:
        return ""
    if line.share is None:
        return line.note or (f"success {percent(line.success)}" if line.success is not None else "")
    text = percent(line.share) + (f" ({interval(line.ci95)})" if line.ci95 else "")
    return f"{text}, {line.note}" if line.note else text


def distance_lines(results: Results) -> list[str]:
    """How far the nearest images are, where the table does not say it."""
    return [f"- Median distance of {code(name)}: {prose(distance)}" for name, distance in distances(results)]


def weakest_lines(results: Results) -> list[str]:
    """The weakest class when clean, and at every radius."""
    return [f"- {each.case}: {_named(each.names)}{each.share}" for each in weakest_classes(results)]


def _named(classes: Sequence[str]) -> str:
    """The first of several names."""
    more = f" and {len(classes) - MOST_NAMED:,} more" if len(classes) > MOST_NAMED else ""
    return (
        ", ".join(map(code, classes[:MOST_NAMED])) + more + (", each " if len(classes) > 1 else ", " if classes else "")
    )


def _gates(results: Results) -> list[str]:
    if not results.gates:
        return []
    body = [
        [
            code(gate.name),
            "passed" if gate.passed else "**FAILED**",
            *map(prose, (gate.got, gate.required, gate.detail)),
        ]
        for gate in results.gates
    ]
    found = [*table(["gate", "", "got", "required", "detail"], body, left=5), ""]
    if results.uncompared:
        found += [f"Not compared, since the baseline has no answer: {', '.join(map(code, results.uncompared))}", ""]
    return found


def how(results: Results) -> list[str]:
    """What identifies the evaluation, as a list."""
    return [f"- {label}: {code(value)}" for label, value in measured(results)]
