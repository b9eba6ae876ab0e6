"""last.ckpt: what a run needs to go on as if nothing had happened, and with what it may go on.

A run goes on with the images and the teacher that it began with. Their SHA-256 counts, not where they lie.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_state, read_weights, save_record, save_state
from dgad_tk.common import UserError, reason_of, sha256_file
from dgad_tk.config.training import FREE, PLACES, TrainConfig, differing, without_places
from dgad_tk.data import Dataset
from dgad_tk.distributed import from_all, world
from dgad_tk.training.epoch import Position
from dgad_tk.training.job import Job
from dgad_tk.training.learner import Learner

_KEYS = ("student", "statistics", "optimizer", "averaged", "state", "origin", "best_sha256")

Statistics = list[list[dict[str, Tensor]]]
"""By process and network: buffers by name."""


@dataclass(frozen=True)
class State:
    """How far a run is. Draws need no state: they are functions of epoch and image.

    Attributes:
        epoch: the current one, from 0.
        position: how far that epoch has come.
        best_score: the highest so far of what epochs are compared by.
        best_epoch: -1 before any was judged.
        best_clean: accuracy of the best on clean images.
        best_robust: its accuracy under attack.
        seconds: of training so far.
    """

    epoch: int = 0
    position: Position = field(default_factory=Position)
    best_score: tuple[float, float] = (-1.0, -1.0)
    best_epoch: int = -1
    best_clean: float = 0.0
    best_robust: float = 0.0
    seconds: float = 0.0


class Snapshots:
    """Saves a job and its learner, and puts the learner back."""

    def __init__(self, job: Job, learner: Learner) -> None:
        self.folder, self.config, self.learner, self.device = job.folder, job.config, learner, job.device
        processes = str(world().size)
        self.origin = {"teacher": job.teacher_name, "dataset": job.dataset.sha256, "number of processes": processes}
        self.origin |= _begun_from(job)

    def statistics(self) -> Statistics:
        """The buffers of every process, in every process: without sync_bn, running statistics differ."""
        own = [{name: buffer.cpu() for name, buffer in network.named_buffers()} for network in self.learner.networks]
        return from_all(own)

    def write(self, state: State, statistics: Statistics) -> None:
        """Replace the checkpoint."""
        learner = self.learner
        save_state(
            self.folder.last,
            {
                "student": learner.student.state_dict(),
                "statistics": statistics,
                "optimizer": learner.optimizer.state_dict(),
                "averaged": learner.averaged.state_dict() if learner.averaged is not None else {},
                "memory": {name: value.cpu() for name, value in learner.memory.items()},
                "state": asdict(state),
                "origin": self.origin,
                "settings": settings_of(self.config),
                "best_sha256": sha256_file(self.folder.best) if self.folder.best.is_file() else "",
            },
        )

    def restore(self) -> State:
        """Put the learner back to the last checkpoint.

        Raises:
            UserError: the checkpoint is damaged, or was made with another teacher, other images, other settings or
                another number of processes.
        """
        folder, learner = self.folder, self.learner
        saved = load_state(folder.last, _KEYS)
        _check_origin(folder, saved["origin"], self.origin)
        # Checkpoints of older versions hold no settings and no memory.
        if others := differing(settings_of(self.config), saved.get("settings", {})):
            raise UserError(
                f"'{folder.config}' is not what '{folder.last}' was trained with: " + "; ".join(others),
                hint="put config.yaml back as it was, or start a new run",
            )
        if saved["best_sha256"] and not folder.best.is_file():
            raise UserError(f"'{folder.best}' is gone, and the run needs it", hint="start a new run")
        try:
            learner.student.load_state_dict(saved["student"])
            learner.optimizer.load_state_dict(saved["optimizer"])
            if learner.averaged is not None:
                learner.averaged.load_state_dict(saved["averaged"])
            held = saved.get("memory", {})
            # Single numbers stay on the CPU, where a GPU need not be waited for.
            learner.memory = {name: value.to(self.device) if value.ndim else value for name, value in held.items()}
            for network, own in zip(learner.networks, saved["statistics"][world().rank], strict=True):
                network.load_state_dict(own, strict=False)
            state = dict(saved["state"])
            return State(**(state | {"position": Position(**state["position"])}))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise UserError(
                f"'{folder.last}' does not fit this run: {reason_of(error)}", hint="start a new run"
            ) from None


def _begun_from(job: Job) -> dict[str, str]:
    """What a student's network and first weights come from, where its name alone does not say it."""
    return {
        "source of the student": str(job.network.get("source_sha256", "")),
        "file of first weights": job.start.sha256 if job.start is not None else "",
    }


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The keys of a config that change the weights, in plain values."""
    return without_places(config.model_dump(mode="json", exclude=FREE | PLACES))


def check_finished(job: Job) -> None:
    """See that the weights of a finished run belong to the job's settings, images and teacher.

    Raises:
        UserError: they belong to another run.
    """
    folder, dataset = job.folder, job.dataset
    _, record = read_weights(folder.best)
    _check_origin(
        folder,
        {
            "teacher": record.teacher,
            "dataset": str(record.training.get("dataset_sha256", dataset.sha256)),
            "source of the student": str(record.network.get("source_sha256", "")),
            "file of first weights": str(record.training.get("init_sha256", "")),
        },
        {"teacher": job.teacher_name or record.teacher, "dataset": dataset.sha256, **_begun_from(job)},
    )
    made = {"student": record.model, "method": record.method} | {
        key: record.training[key] for key in ("seed", "epochs", "limit_train") if key in record.training
    }
    if others := differing(settings_of(job.config), without_places(made)):
        raise UserError(
            f"the weights in '{folder.path}' are not of its config.yaml: " + "; ".join(others), hint="start a new run"
        )


def _check_origin(folder: RunFolder, begun: dict[str, str], now: dict[str, str]) -> None:
    """See that a run goes on with what it began with. Of a teacher, `name sha256`, only the SHA-256 counts."""
    for what, wanted in now.items():
        if begun.get(what, "").rpartition(" ")[2] != wanted.rpartition(" ")[2]:
            raise UserError(
                f"the run in '{folder.path}' was begun with another {what}: {begun.get(what) or 'none'}, not {wanted}",
                hint=f"put the old {what} back, or start a new run",
            )


def name_new_places(folder: RunFolder, dataset: Dataset) -> bool:
    """Write where the images lie now into the record of a run's best weights; whether that changed them.

    This changes the SHA-256 of the file, so it must not be called once the weights are somebody's teacher.
    """
    if not folder.best.is_file():
        return False
    _, record = read_weights(folder.best)
    if record.dataset_options == dataset.options:
        return False
    save_record(folder.best, record.model_copy(update={"dataset_options": dataset.options}))
    return True
