"""The table that `dgad attack` prints."""

from typing import Any

from rich.console import Console
from rich.table import Table

from dgad_tk.common import format_fraction

WIDE = 160
"""Columns where there is no terminal to ask: a log or a pipe should not cut names."""


def plain_table(names: list[str], rows: list[list[str]], *, left: int = 1) -> None:
    """Print rows under `names`, the first `left` columns flush left and the others right."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def results_table(documents: list[dict[str, Any]]) -> None:
    """Print one table of all evaluated models, what to doubt about them, and where the files are."""
    several = len(documents) > 1
    names = ["attack", "eps", "robust", "95 % interval", "success", "median L2", "seconds"]
    rows = [
        [*([document["model"]["path"]] if several else []), *cells]
        for document in documents
        for cells in _rows(document)
    ]
    plain_table([*(["model"] if several else []), *names], rows, left=3 if several else 2)
    for document in documents:
        where = f"{document['model']['path']}: " if several else ""
        for line in _more(document):
            print(f"{where}{line}")
        print(f"{where}believable: {document['checks']['verdict']}")
        for text, names in _doubts(document).items():
            print(f"  {', '.join(names)}: {text}")
        print(f"{where}{document['folder']}/results.json")


def _more(document: dict[str, Any]) -> list[str]:
    """What has no column: the classes that are worst off, the stages of ensembles, and what papers print of an attack
    without a ball."""
    from evaluators.suites import SUITES

    lines = [_worst_class("clean", document["clean"]["classes"], "correct")]
    lines += [
        _worst_class(f"under attack at {format_fraction(worst['eps'])}", worst["classes"], "robust")
        for worst in document["worst_case"]
    ]
    for attack in document["attacks"]:
        if attack["stages"]:
            stages = ", ".join(f"{stage['name']} {stage['broken']:,}" for stage in attack["stages"])
            lines.append(f"{attack['id']} broke by stage: {stages}")
        if attack["accuracy"] is not None and attack["name"] in SUITES["paper"] and attack["surrogate"] is None:
            lines.append(f"{attack['id']} left {attack['accuracy']:.1%} right, the accuracy that papers print")
    return lines


def _worst_class(when: str, classes: list[dict[str, Any]], key: str) -> str:
    """The class with the smallest share of right images, the first of several."""
    worst = min(classes, key=lambda each: each[key] / each["n"])
    share = f"{worst[key] / worst['n']:.1%} ({worst[key]:,} of {worst['n']:,})"
    return f"worst of {len(classes)} classes {when}: '{worst['class']}', {share}"


def _doubts(document: dict[str, Any]) -> dict[str, list[str]]:
    """What to know about checks and rows, each text once, with the names it is said of."""
    doubts: dict[str, list[str]] = {}
    for item in document["checks"]["items"]:
        if item["verdict"] != "high" and item["name"] not in doubts.setdefault(item["detail"], []):
            doubts[item["detail"]].append(item["name"])
    said = set(doubts)
    for attack in document["attacks"]:
        notes = attack["flags"] + ([f"skipped: {attack['reason']}"] if attack["status"] == "skipped" else [])
        for note in notes:
            if note not in said:
                doubts.setdefault(note, []).append(attack["id"])
    return doubts


def _rows(document: dict[str, Any]) -> list[list[str]]:
    clean, n = document["clean"], document["dataset"]["n"]
    rows = [["clean", "", f"{clean['accuracy']:.1%}", "", "", "", ""]]
    for attack in document["attacks"]:
        eps = format_fraction(attack["eps"]) if attack["eps"] is not None else "unbounded"
        if attack["status"] != "done":
            rows.append([attack["id"], eps, attack["status"], "", "", "", ""])
            continue
        rows.append(
            [
                attack["id"] if attack["n"] == n else f"{attack['id']} (first {attack['n']:,})",
                eps,
                _percent(attack["robust_accuracy"]),
                _interval(attack["ci95"]),
                _percent(attack["success"]),
                "" if attack["median_l2"] is None else f"{attack['median_l2']:.3f}",
                f"{attack['seconds']:.1f}",
            ]
        )
    for worst in document["worst_case"]:
        share, interval = _percent(worst["robust_accuracy"]), _interval(worst["ci95"])
        rows.append([f"worst case {worst['norm']}", format_fraction(worst["eps"]), share, interval, "", "", ""])
    return rows


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.1%} to {ends[1]:.1%}"
