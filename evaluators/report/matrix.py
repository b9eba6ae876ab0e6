"""matrix.json: every surrogate's examples on every target. The diagonal, a model's examples on itself, is white-box."""

from pathlib import Path
from typing import Any

from dgad_tk.common import write_json

SCHEMA = "dgad/matrix/1"


def matrix(documents: list[dict[str, Any]], surrogates: dict[str, str]) -> dict[str, Any]:
    """Transfer rows of several results as one table an attack.

    Args:
        documents: of `results`, one a target.
        surrogates: name to SHA-256.

    Returns:
        `{"schema", "targets": [{"path", "sha256", "clean"}], "surrogates": [{"name", "sha256"}], "tables": [{"attack",
        "norm", "eps", "robust_accuracy", "success"}]}`; of the last two a row for each surrogate and a column for each
        target. `success` is the share of the images a target gets right that the examples broke; null where a row was
        skipped.
    """
    rows = [{entry["id"]: entry for entry in document["attacks"]} for document in documents]
    transfers = [entry for entry in documents[0]["attacks"] if entry["source"] == "transfer"]
    tables: list[dict[str, Any]] = []
    for name, norm, eps in dict.fromkeys((entry["name"], entry["norm"], entry["eps"]) for entry in transfers):
        ids = {entry["surrogate"]: entry["id"] for entry in transfers if (entry["name"], entry["eps"]) == (name, eps)}

        def column(key: str, ids: dict[str, str] = ids) -> list[list[float | None]]:
            return [[found[ids[surrogate]][key] for found in rows] for surrogate in surrogates]

        tables.append(
            {
                "attack": name,
                "norm": norm,
                "eps": eps,
                "robust_accuracy": column("robust_accuracy"),
                "success": column("success"),
            }
        )
    return {
        "schema": SCHEMA,
        "targets": [
            {
                "path": document["model"]["path"],
                "sha256": document["model"]["sha256"],
                "clean": document["clean"]["accuracy"],
            }
            for document in documents
        ],
        "surrogates": [{"name": name, "sha256": sha256} for name, sha256 in surrogates.items()],
        "tables": tables,
    }


def write_matrix(document: dict[str, Any], path: Path) -> None:
    """Write it aside and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document)
