"""The table of all JSON documents. A new one is a model, here or next to what it describes, and its row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from cli.documents.bench import Bench
from cli.documents.export import Export
from cli.documents.forecast import Forecast
from cli.documents.inspect import Inspected
from cli.documents.list import Listed
from cli.documents.report import Reported
from cli.documents.train import Trained
from dgad_tk.common import lookup


def _results() -> type:
    from evaluators.results import Results

    return Results


def _matrix() -> type:
    from evaluators.report.matrix import Matrix

    return Matrix


def _comparison() -> type:
    from evaluators.verdict.comparison.document import Comparison

    return Comparison


def _artifact() -> type:
    from dgad_tk.artifacts.record import Artifact

    return Artifact


@dataclass(frozen=True)
class Document:
    """A kind of document.

    Attributes:
        found: where it is met.
        model: gives the class that describes it.
    """

    found: str
    model: Callable[[], type]


DOCUMENTS: dict[str, Document] = {
    "dgad/train/1": Document("dgad train --json", lambda: Trained),
    "dgad/export/1": Document("dgad export --json, a line for each file", lambda: Export),
    "dgad/results/1": Document("results.json, dgad attack --json, dgad gate --json; a list for several", _results),
    "dgad/forecast/1": Document("dgad attack --dry-run --json; a list for several models", lambda: Forecast),
    "dgad/matrix/1": Document("matrix.json of dgad attack", _matrix),
    "dgad/compare/1": Document("dgad compare --json", _comparison),
    "dgad/report/1": Document("dgad report --json; a list for several training runs", lambda: Reported),
    "dgad/bench/1": Document("dgad bench --json", lambda: Bench),
    "dgad/inspect/1": Document("dgad inspect", lambda: Inspected),
    "dgad/artifact/1": Document("the record in a model file", _artifact),
    "dgad/list/1": Document("dgad list WHAT --json", lambda: Listed),
}
"""By the name that stands in the document under `schema`."""


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a document.

    Args:
        name: `dgad/export/1`, or `export` for short.

    Raises:
        UserError: no such document.
    """
    short = {full.split("/")[1]: row for full, row in DOCUMENTS.items()}
    return TypeAdapter(lookup({**short, **DOCUMENTS}, name, "schema").model()).json_schema(mode="serialization")
