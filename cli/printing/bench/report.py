"""What `dgad bench` found, in one value. The tables are printed from it, and its JSON is the schema `dgad/bench/1`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluators.results import Results
    from exporters.bench.describe import Subject
    from exporters.bench.latency import Measurement

SCHEMA = "dgad/bench/1"


@dataclass(frozen=True)
class Asked:
    """The images and the Linf radius that `--robust` asks of all files alike."""

    dataset: str
    n: int
    eps: float
    split: str = "test"


@dataclass(frozen=True)
class Benched:
    """One file.

    Attributes:
        robust: what PGD found, or why it was refused; None without `--robust`.
    """

    subject: "Subject"
    measurements: "Sequence[Measurement]"
    robust: "Results | str | None" = None

    @property
    def path(self) -> str:
        return str(self.subject.path)

    @property
    def doubts(self) -> list[str]:
        """What to know about the accuracies, each once."""
        if self.robust is None or isinstance(self.robust, str):
            return []
        doubts = [item.detail for item in self.robust.checks.items if item.verdict != "high"]
        return list(dict.fromkeys([*self.robust.model.notes, *doubts, *self.robust.attacks[0].flags]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        document = {**asdict(self.subject), "path": self.path}
        document |= document.pop("complexity") | {"measurements": [asdict(each) for each in self.measurements]}
        if isinstance(self.robust, str):
            document["robust"] = {"status": "refused", "reason": self.robust}
        elif self.robust is not None:
            (attack,) = self.robust.attacks
            document["robust"] = {
                "status": "done",
                "reason": "",
                "clean_accuracy": self.robust.clean.accuracy,
                "robust_accuracy": attack.robust_accuracy,
                "ci95": attack.ci95,
                "steps": attack.params["steps"],
                "twin": self.robust.twin,
                "notes": self.doubts,
            }
        return document


@dataclass(frozen=True)
class BenchReport:
    """All files, timed side by side.

    Attributes:
        seconds: for which each file was timed in each setting.
        cores, quota: that the process may run on, and how many of them its time is worth; None without a quota.
        load_average: of the minute before; None where the system does not say.
        asked: None without `--robust`.
    """

    command: str
    provider: str
    seconds: float
    processor: str
    cores: int
    quota: float | None
    load_average: float | None
    files: Sequence[Benched]
    asked: Asked | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, with the time and the versions of what computed the numbers."""
        from dgad_tk.artifacts.record import tool_versions

        environment = {
            "processor": self.processor,
            "cores": self.cores,
            "quota": self.quota,
            "load_average": self.load_average,
        }
        document = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "provider": self.provider,
            "seconds": self.seconds,
            "environment": tool_versions() | environment,
            "files": [file.to_dict() for file in self.files],
        }
        if self.asked is not None:
            document["dataset"] = {"name": self.asked.dataset, "split": self.asked.split, "n": self.asked.n}
            document["threat"] = {"norm": "linf", "eps": self.asked.eps}
        return document
