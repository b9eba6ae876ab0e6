"""How the model was trained: what its record says, and the curves of its run where that is at hand."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from dgad_tk.artifacts.runs import RUNS, RunFolder
from dgad_tk.common import UserError, reason_of, sha256_file
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
    except (UserError, OSError) as error:  # a damaged run is no reason to have no report, nor one that just vanished
        return Trained([*facts, ("its curves", reason_of(error))])
    curve = validation(run)
    return Trained(facts, [*([curve] if curve else []), *losses(run)[:1]])


def run_of(results: Results, runs: Path = RUNS) -> RunFolder | None:
    """The run whose best weights were attacked, or exported into what was attacked; None where it is not found.

    SHA-256 decides, not a name. Runs are looked for only if the model's record speaks of training or of the file that
    it was made from, or if the model is weights itself. A run that cannot be read is not the one.
    """
    source = (results.model.metadata or {}).get("source_sha256")
    if not (source or recorded(results, "training") or results.model.format == "safetensors"):
        return None
    wanted = [results.model.sha256, source]
    found = {}
    for folder in _candidates(results, runs):
        try:
            if folder.exists() and folder.best.is_file():
                found[folder] = folder.written()
        except (OSError, ValueError):  # it may vanish in between
            continue
    newest = sorted(found, key=lambda folder: found[folder], reverse=True)[:MOST_RUNS]
    return next((folder for folder in newest if _sha256(folder.best) in wanted), None)


def _candidates(results: Results, runs: Path) -> Iterator[RunFolder]:
    """The model's own folder and those in `runs`.

    The model's path is a stranger's: it is looked at only inside the current folder.
    """
    own = Path(results.model.path)
    try:
        if not (own.is_absolute() or ".." in own.parts) and own.resolve().is_relative_to(Path.cwd().resolve()):
            yield RunFolder(own.parent)
    except (OSError, ValueError, RuntimeError):  # no name that a file could have; a circle of links
        pass
    try:
        yield from [RunFolder(path) for path in runs.glob("*/")]
    except OSError:  # nobody may look into it
        return


def _sha256(path: Path) -> str | None:
    """SHA-256 of a file, read once per process while it stays as it is; None where it cannot be read."""
    try:
        state = path.stat()
        return _sha256_of(path.resolve(), state.st_mtime_ns, state.st_size)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _sha256_of(path: Path, mtime_ns: int, size: int) -> str:
    return sha256_file(path)
