"""How the model was trained: what its record says, and the curves of its run where that is at hand."""

from dataclasses import dataclass, field
from pathlib import Path

from dgad_tk.artifacts.runs import RUNS, RunFolder
from dgad_tk.common import UserError, sha256_file
from evaluators.report.evidence import recorded
from evaluators.report.runs.curves import Curve, losses, validation
from evaluators.report.runs.record import read_run
from evaluators.results import Results

MOST_RUNS = 50
"""Runs that are looked at; of more, the newest."""


@dataclass(frozen=True)
class Trained:
    """What is known of the training.

    Attributes:
        facts: name and value.
        curves: of the run; empty where it is not at hand.
    """

    facts: list[tuple[str, str]]
    curves: list[Curve] = field(default_factory=list)


def trained(results: Results, runs: Path = RUNS) -> Trained:
    """What the model's record says of its training, and its run's curves if the run lies in `runs`."""
    record = results.model.metadata or {}
    training = recorded(results, "training")
    known = [
        ("network", record.get("model")),
        ("method", record.get("method")),
        ("dataset", record.get("dataset")),
        ("teacher", record.get("teacher")),
        ("epochs", training.get("epochs")),
        ("best epoch", training.get("best_epoch")),
        ("seed", training.get("seed")),
        ("epoch chosen on", {"val": "validation images", "test": "test images"}.get(str(training.get("selected_on")))),
        ("made from the file with SHA-256", record.get("source_sha256")),
    ]
    facts = [(label, str(value)) for label, value in known if value not in (None, "")]
    folder = run_of(results, runs)
    if folder is None:
        return Trained(facts)
    facts.append(("training run", str(folder.path)))
    try:
        run = read_run(folder)
    except UserError as error:  # a damaged run is no reason to have no report
        return Trained([*facts, ("its curves", error.message)])
    curve = validation(run)
    return Trained(facts, [*([curve] if curve else []), *losses(run)[:1]])


def run_of(results: Results, runs: Path = RUNS) -> RunFolder | None:
    """The run whose best weights were attacked, or exported into what was attacked; None where it is not found.

    SHA-256 decides, not a name.
    """
    wanted = [results.model.sha256, (results.model.metadata or {}).get("source_sha256")]
    folders = [RunFolder(path) for path in runs.glob("*/")]
    own = RunFolder(Path(results.model.path).parent)
    candidates = [folder for folder in (own, *folders) if folder.exists() and folder.best.is_file()]
    newest = sorted(candidates, key=RunFolder.written, reverse=True)[:MOST_RUNS]
    return next((folder for folder in newest if sha256_file(folder.best) in wanted), None)
