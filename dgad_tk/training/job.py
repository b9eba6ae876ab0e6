"""One network to train, and who is told how its training goes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import Dataset, Split
from dgad_tk.methods import Method


@dataclass(frozen=True)
class Progress:
    """Where a run stands, after each step and, with `metrics`, after each epoch."""

    role: str
    epoch: int
    epochs: int
    step: int
    steps: int
    terms: dict[str, float]
    samples_per_second: float
    metrics: dict[str, float] | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """What to call while a run goes on. Of several processes, only the leader has one that does something.

    Attributes:
        progress: called after each step and each epoch; keep it cheap.
        message: gets what a user should know, line by line.
        stopping: called in the signal handler when somebody asks the run to end.
        folder: gets the run folder, once it belongs to this run.
    """

    progress: OnProgress = lambda state: None
    message: Callable[[str], None] = lambda line: None
    stopping: Callable[[], None] = lambda: None
    folder: Callable[[RunFolder], None] = lambda folder: None


SILENT = Watcher()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One network to train.

    Attributes:
        config: resolved.
        device: where to train.
        teacher: frozen, in eval mode; None for a method without one.
        teacher_name: its name and the SHA-256 of its file.
        role: what progress and errors call the network.
        still_ours: called before each write; raises a UserError if another run has taken the folder.
    """

    config: TrainConfig
    method: Method
    dataset: Dataset
    folder: RunFolder
    device: torch.device
    teacher: nn.Module | None = None
    teacher_name: str = ""
    role: str = "student"
    watcher: Watcher = SILENT
    still_ours: Callable[[], None] = lambda: None


def training_split(config: TrainConfig, dataset: Dataset) -> Split:
    """The images that a run trains on."""
    split = dataset.train if config.select_on == "val" else dataset.train_and_val
    return split.subset(config.limit_train) if config.limit_train else split
