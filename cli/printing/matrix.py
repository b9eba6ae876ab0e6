"""matrix.json of `dgad attack`, and its table: every surrogate's examples on every model."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cli.printing.results_table import eps_text
from cli.printing.terminal import plain_table, say

if TYPE_CHECKING:
    from evaluators.report.matrix import Matrix
    from evaluators.results import Results


def matrix_of(results: "Sequence[Results]", surrogates: Mapping[str, str]) -> "Matrix | None":
    """The matrix of several models or surrogates; None if there is only one of each.

    Args:
        results: one per model.
        surrogates: name to SHA-256.
    """
    from evaluators.report.matrix import matrix

    transfers = any(row.source == "transfer" for row in results[0].attacks)
    if not transfers or len(results) * len(surrogates) < 2:
        return None
    if any((each.threat, each.dataset) != (results[0].threat, results[0].dataset) for each in results):
        print("no matrix.json: the models were attacked on other images or at other eps", file=sys.stderr)
        return None
    return matrix(results, surrogates)


def matrix_table(matrix: "Matrix", path: Path) -> None:
    """Print where the matrix is; with several models also the table, with a column per model."""
    rows: list[list[str]] = []
    for table in matrix.tables:
        bounded = table.eps is not None
        shares, what = (table.robust_accuracy, "robust") if bounded else (table.success, "success")
        for surrogate, line in zip(matrix.surrogates, shares, strict=True):
            own = [target.sha256 == surrogate.sha256 for target in matrix.targets]
            cells = [_cell(share, marked) for share, marked in zip(line, own, strict=True)]
            rows.append([surrogate.name, table.attack, eps_text(table.eps), what, *cells])
    if len(matrix.targets) > 1:
        plain_table(["made on", "attack", "eps", "share", *(each.path for each in matrix.targets)], rows, left=4)
        if any(cell.startswith("*") for row in rows for cell in row):
            say("* made on this very file")
    say(str(path))


def _cell(share: float | None, own: bool) -> str:
    return "skipped" if share is None else f"{'*' if own else ''}{share:.1%}"
