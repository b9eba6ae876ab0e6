"""matrix.json: the examples of every surrogate on every target. A model's examples on itself are white-box."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dgad_tk.common import write_json
from evaluators.results import Results

SCHEMA = "dgad/matrix/1"

Shares = list[list[float | None]]
"""One row per surrogate, one column per target; None where the attack was skipped."""


@dataclass(frozen=True)
class Target:
    """A model that was attacked, and its clean accuracy."""

    path: str
    sha256: str
    clean: float


@dataclass(frozen=True)
class MadeOn:
    """A surrogate that examples were made on."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Table:
    """One attack at one radius.

    Attributes:
        success: share of the images that a target gets right and that the examples broke.
    """

    attack: str
    norm: str
    eps: float | None
    robust_accuracy: Shares
    success: Shares


@dataclass(frozen=True)
class Matrix:
    """The whole document."""

    schema: str
    targets: list[Target]
    surrogates: list[MadeOn]
    tables: list[Table]


def matrix(results: Sequence[Results], surrogates: Mapping[str, str]) -> Matrix:
    """The transfer rows of several results, one per target, as one table per attack and radius.

    Args:
        surrogates: name to SHA-256.
    """
    rows = [{row.id: row for row in each.attacks} for each in results]
    transfers = [row for row in results[0].attacks if row.source == "transfer"]
    tables: list[Table] = []
    for name, norm, eps in dict.fromkeys((row.name, row.norm, row.eps) for row in transfers):
        ids = {row.surrogate: row.id for row in transfers if (row.name, row.eps) == (name, eps)}
        lines = [[found[ids[surrogate]] for found in rows] for surrogate in surrogates]
        robust = [[row.robust_accuracy for row in line] for line in lines]
        tables.append(Table(name, norm, eps, robust, [[row.success for row in line] for line in lines]))
    targets = [Target(each.model.path, each.model.sha256, each.clean.accuracy) for each in results]
    return Matrix(SCHEMA, targets, [MadeOn(*each) for each in surrogates.items()], tables)


def write_matrix(found: Matrix, path: Path) -> None:
    """Write `matrix.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(found))
