"""The comparison of results, printed: findings in sentences first, then a table for each pair."""

from typing import TYPE_CHECKING, Literal

from cli.printing.results_table import interval_text, share_text
from cli.printing.terminal import plain_table, say

if TYPE_CHECKING:
    from evaluators.verdict.comparison.document import Comparison, Pair, PairedTest, Survival

MOST_CHANGES = 6
"""Images that are named. All of them are in the JSON and the first hundred on the page."""


def print_comparison(found: "Comparison") -> None:
    """Print what was compared, what to know about it, and each pair."""
    say(f"{found.images.n:,} images of {found.images.name} {found.images.split}, seen by all")
    for each in found.results:
        role = ", the reference" if each.number == 1 else ""
        say(f"[{each.number}] {each.name} ({each.format}){role}")
    for note in found.notes:
        say(f"note: {note}")
    for pair in found.pairs:
        print()
        _pair(found, pair)
    print()
    _survival(found)


def _pair(found: "Comparison", pair: "Pair") -> None:
    """Print the findings of one result beside the reference, then its table, classes and changed images."""
    from evaluators.verdict.comparison.findings import MINUS

    tests = {each.name: each for each in pair.tests}
    heads = [tests[name] for name in pair.headlines]
    for test in heads:
        say(f"{test.finding}: {test.evidence}.".replace(MINUS, "-"))  # as in the tables, for any terminal
    print()
    mine = f"[{pair.other}]"
    names = [f"{mine} and [1]", "[1]", mine, "lost", "won", "points", "95 % interval", "p", "Holm"]
    plain_table(names, [_cells(each, found.images.n) for each in pair.tests])
    say(
        f"points: {mine} less [1]. p: exact McNemar test; it decides, not the interval. Holm: p adjusted for "
        f"{found.adjustment.tests} tests."
    )
    for test in heads:
        _classes(test, mine)
    for test in heads:
        _changes(test)
    reasons: dict[str, list[str]] = {}
    for each in pair.uncompared:
        reasons.setdefault(each.reason, []).append(each.row)
    for reason, rows in reasons.items():
        say(f"not compared: {', '.join(rows)} ({reason})")


def _cells(test: "PairedTest", n: int) -> list[str]:
    from evaluators.verdict.comparison.findings import decimal, p_text

    name = test.name if test.n == n else f"{test.name} ({test.n:,} images)"
    shares = [share_text(right / test.n) for right in (test.reference_right, test.right)]
    counts = [f"{test.lost:,}", f"{test.won:,}"]
    interval = " to ".join(decimal(end) for end in test.ci95)
    return [name, *shares, *counts, decimal(test.difference), interval, p_text(test.p), p_text(test.p_adjusted)]


def _classes(test: "PairedTest", mine: str) -> None:
    """Print the class that lost most, and the worst class of each of the two."""
    from evaluators.verdict.comparison.findings import decimal

    lost = min(test.classes, key=lambda each: each.difference)
    if lost.difference < 0:
        interval = " to ".join(decimal(end) for end in lost.ci95)
        shares = f"{share_text(lost.reference_right / lost.n)} to {share_text(lost.right / lost.n)}"
        change = f"'{lost.class_}' lost most, {shares}, {decimal(lost.difference)} points ({interval})"
    else:
        change = "none differs" if all(each.difference == 0 for each in test.classes) else "none lost"
    worst = f"{_lowest(test, 'reference_right')} in [1], {_lowest(test, 'right')} in {mine}"
    say(f"{test.name}, of {len(test.classes)} classes: {change}; the worst is {worst}")


def _lowest(test: "PairedTest", key: Literal["right", "reference_right"]) -> str:
    from evaluators.verdict.comparison.findings import lowest

    names, share = lowest(test.classes, key)
    who = f"'{names[0]}'" if len(names) == 1 else f"each of {len(names)}"
    return f"{who} with {share_text(share)}"


def _changes(test: "PairedTest") -> None:
    """Print the first images that were lost and won."""
    for change in ("lost", "won"):
        images = [each for each in test.changes if each.change == change]
        told = [
            f"{each.index} ('{each.label}' answered '{each.answer if change == 'lost' else each.reference_answer}')"
            for each in images[:MOST_CHANGES]
        ]
        more = f" and {len(images) - MOST_CHANGES:,} more, with --json" if len(images) > MOST_CHANGES else ""
        if told:
            say(f"{test.name} {change}: {', '.join(told)}{more}")


def _survival(found: "Comparison") -> None:
    """Print how many of the images that are right in the reference are right in each other result, and in all."""
    asked = {each.name: each for each in found.survival}
    names = [name for name in dict.fromkeys(name for pair in found.pairs for name in pair.headlines) if name in asked]
    rows = [row for name in names for row in _kept(asked[name])]
    plain_table(["right in [1]", "images", "also in", "", "95 % interval"], rows)


def _kept(survival: "Survival") -> list[list[str]]:
    shown_once, rows = [survival.name, f"{survival.reference_right:,}"], []
    for each in [*survival.results, *([survival.in_all] if len(survival.results) > 1 else [])]:
        where = f"[{each.result}]" if each.result else "all"
        interval = interval_text(each.ci95) if each.share is not None else ""
        rows.append([*shown_once, f"{where} {each.kept:,}", share_text(each.share), interval])
        shown_once = ["", ""]
    return rows
