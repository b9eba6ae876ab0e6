"""A run folder as a typed record. What is damaged or not there yet is left out, and said."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open

from dgad_tk.artifacts.examples import Examples
from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.common import UserError, reason_of
from dgad_tk.config.training import TrainConfig
from dgad_tk.methods import METHODS

LAST_EPOCH = 10**6
"""A line of metrics.jsonl that claims a later one is damaged."""


@dataclass(frozen=True)
class Epoch:
    """A line of metrics.jsonl.

    Attributes:
        number: from 1.
        values: loss terms, accuracies, learning rate, times. May hold NaN and infinity.
    """

    number: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class NonFinite:
    """Where the loss became NaN or infinite.

    Attributes:
        epoch: from 1; None where the file does not say.
        terms: the loss terms of that step.
    """

    epoch: int | None
    terms: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    Attributes:
        folder: which one.
        config: its settings.
        epochs: those done, ascending.
        finished: the run has ended by itself.
        seconds: that the whole run took; None where it has not ended.
        best: number of the best epoch, from 1; None before any was judged.
        artifact: the record in best.safetensors.
        examples: of images.npz.
        non_finite: why the run stopped, where its loss was the reason.
        teacher: the run of its own teacher.
        notes: sentences on what could not be read.
    """

    folder: RunFolder
    config: TrainConfig
    epochs: list[Epoch]
    finished: bool
    seconds: float | None
    best: int | None
    artifact: Artifact | None
    examples: Examples | None
    non_finite: NonFinite | None
    teacher: "Run | None"
    notes: list[str]

    @property
    def selected_by(self) -> str:
        """The accuracy that chooses the best epoch: `robust` or `clean`."""
        if self.artifact is not None and self.artifact.training.get("selected_by") in ("robust", "clean"):
            return str(self.artifact.training["selected_by"])
        return _selected_by(self.config)

    def series(self, name: str) -> list[tuple[float, float]]:
        """Epoch and value of one metric, where it was measured."""
        return [(epoch.number, epoch.values[name]) for epoch in self.epochs if name in epoch.values]

    def at(self, name: str, number: int | None) -> float | None:
        """A metric in one epoch; None where it was not measured or is not finite."""
        found = (epoch.values.get(name) for epoch in self.epochs if epoch.number == number)
        return next((value for value in found if value is not None and math.isfinite(value)), None)


def read_run(folder: RunFolder) -> Run:
    """The record of a run, finished or not, of this version or an older one.

    Raises:
        UserError: there is no run, or its config.yaml cannot be read.
    """
    if not folder.exists():
        raise UserError(f"'{folder.path}' is no run folder", hint="give a folder of `dgad train`: it holds config.yaml")
    config, notes = folder.read_config(), []
    lines, lost = _lines(folder)
    if lost:
        notes.append(f"{lost} damaged line{'s' if lost > 1 else ''} of metrics.jsonl left out.")
    by_number = {line["epoch"] + 1: line for line in lines if line["event"] == "epoch"}
    epochs = [Epoch(number, _numbers(by_number[number])) for number in sorted(by_number)]
    end = lines[-1] if lines and lines[-1]["event"] == "end" else None
    artifact = examples = None
    if folder.best.is_file():
        try:
            artifact = _artifact(folder)
        except (UserError, OSError, SafetensorError) as error:
            notes.append(f"best.safetensors cannot be read: {_reason(error)}.")
    if folder.images.is_file():
        try:
            examples = Examples.read(folder.images)
        except UserError as error:
            notes.append(f"images.npz left out: {_reason(error)}.")
    return Run(
        folder=folder,
        config=config,
        epochs=epochs,
        finished=end is not None and folder.best.is_file(),
        seconds=_numbers(end).get("seconds") if end else None,
        best=_best(artifact, epochs, config),
        artifact=artifact,
        examples=examples,
        non_finite=_non_finite(folder, epochs, ended=end is not None),
        teacher=read_run(folder.teacher) if folder.teacher.exists() else None,
        notes=notes,
    )


def _lines(folder: RunFolder) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of metrics.jsonl, and the number of others. A killed process may leave one at the end."""
    if not folder.metrics.is_file():
        return [], 0
    texts = [text for text in folder.metrics.read_text(encoding="utf-8", errors="replace").splitlines() if text.strip()]
    found = list(_whole(texts))
    return found, len(texts) - len(found)


def _whole(texts: list[str]) -> Iterator[dict[str, Any]]:
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if not isinstance(line, dict) or line.get("event") not in ("epoch", "end"):
            continue
        number = line.get("epoch", 0)
        if type(number) is int and 0 <= number < LAST_EPOCH and (line["event"] == "end" or "epoch" in line):
            yield line


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in line.items()
        if name != "epoch" and (type(value) is float or (type(value) is int and abs(value) < 2**63))
    }


def _artifact(folder: RunFolder) -> Artifact | None:
    with safe_open(folder.best, framework="pt") as file:  # the tensors stay where they are
        return Artifact.from_mapping(file.metadata() or {}, str(folder.best))


def _best(artifact: Artifact | None, epochs: list[Epoch], config: TrainConfig) -> int | None:
    """The best epoch by the record of its weights, else by the metrics, which a killed process may leave behind."""
    said = artifact.training.get("best_epoch") if artifact else None
    if type(said) is int and said in {epoch.number for epoch in epochs}:
        return said
    by = _selected_by(config)
    names = [f"{config.select_on}_{by}", f"{config.select_on}_{'clean' if by == 'robust' else 'robust'}"]
    scores = {epoch.number: [epoch.values.get(name, -1.0) for name in names] for epoch in epochs}
    judged = {number: score for number, score in scores.items() if min(score) >= 0}
    return max(judged, key=lambda number: (judged[number], -number)) if judged else None


def _selected_by(config: TrainConfig) -> str:
    method = METHODS.get(config.method.partition("+")[0])  # an older version may have had others
    return method.selected_by if method else "robust"


def _non_finite(folder: RunFolder, epochs: list[Epoch], *, ended: bool) -> NonFinite | None:
    """What the batch says that a run left behind when its loss was not finite, unless the run went on since."""
    if ended or not folder.non_finite.is_file():
        return None
    try:
        with safe_open(folder.non_finite, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
        number, terms = int(about["epoch"]) + 1, _numbers(about["terms"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return NonFinite(None, {})
    return None if epochs and epochs[-1].number >= number else NonFinite(number, terms)


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, UserError) else reason_of(error)
