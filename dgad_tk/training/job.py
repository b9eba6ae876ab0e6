"""One network to train, and who is told how its training goes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import Dataset, Split
from dgad_tk.methods import Method
from dgad_tk.models import source_said


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
class Start:
    """A student's network and first weights, where they are not drawn for a name that `build_model` knows.

    Attributes:
        build: makes the network without normalisation, under the run's seed. It is called once per process.
        sha256: of what the weights come from: a run goes on with the same alone.
        mean, std: normalisation of images in [0, 1] that the weights are used to, one value per channel; else empty.
        said: what the record says of it, under `training`.
        network: what the record says of the network, if its name does not tell.
        graph: the ONNX graph that the network is made from, as bytes; empty for none.
        knows: its answers mean the dataset's classes: its head was not replaced.
    """

    build: Callable[[], nn.Module]
    sha256: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    said: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] | None = None
    graph: bytes = b""
    knows: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """One network to train.

    Attributes:
        config: resolved.
        device: where to train.
        teacher: frozen, in eval mode; None for a method without one.
        teacher_name: its name and the SHA-256 of its file.
        start: the student's network and first weights; None to draw them.
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
    start: Start | None = None
    role: str = "student"
    watcher: Watcher = SILENT
    still_ours: Callable[[], None] = lambda: None

    @property
    def network(self) -> dict[str, Any]:
        """What the record says of a student that is no row of MODELS: where its source stood, and its SHA-256."""
        if self.start is not None and self.start.network is not None:
            return dict(self.start.network)
        return source_said(self.config.student)


def training_split(config: TrainConfig, dataset: Dataset) -> Split:
    """The images that a run trains on."""
    split = dataset.train if config.select_on == "val" else dataset.train_and_val
    return split.subset(config.limit_train) if config.limit_train else split
