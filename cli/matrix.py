"""matrix.json of `dgad attack`, and its table: every surrogate's examples on every model."""

import sys
from pathlib import Path
from typing import Any

from cli.table import plain_table
from dgad_tk.common import format_fraction


def matrix_of(documents: list[dict[str, Any]], surrogates: dict[str, str]) -> dict[str, Any] | None:
    """The matrix, where several models or surrogates make one.

    Args:
        documents: results, one a model.
        surrogates: name to SHA-256.
    """
    from evaluators.report.matrix import matrix

    transfers = any(entry["source"] == "transfer" for entry in documents[0]["attacks"])
    if not transfers or len(documents) * len(surrogates) < 2:
        return None
    first, *others = ((each["threat"], each["dataset"]) for each in documents)
    if any(each != first for each in others):
        print("no matrix.json: the models were attacked on other images or at other eps", file=sys.stderr)
        return None
    return matrix(documents, surrogates)


def matrix_table(document: dict[str, Any], path: Path) -> None:
    """Print where the matrix is; of several models a column each, since the rows of one say it all."""
    targets = document["targets"]
    rows: list[list[str]] = []
    for table in document["tables"]:
        shares, what = table["robust_accuracy"], "robust"
        if table["eps"] is None:
            shares, what = table["success"], "success"
        eps = "unbounded" if table["eps"] is None else format_fraction(table["eps"])
        for surrogate, line in zip(document["surrogates"], shares, strict=True):
            own = [target["sha256"] == surrogate["sha256"] for target in targets]
            cells = [_cell(share, marked) for share, marked in zip(line, own, strict=True)]
            rows.append([surrogate["name"], table["attack"], eps, what, *cells])
    if len(targets) > 1:
        plain_table(["made on", "attack", "eps", "share", *(target["path"] for target in targets)], rows, left=4)
        if any(cell.startswith("*") for row in rows for cell in row):
            print("* made on this very file")
    print(path)


def _cell(share: float | None, own: bool) -> str:
    return "skipped" if share is None else f"{'*' if own else ''}{share:.1%}"
