"""last.ckpt: what a run needs to go on as if nothing had happened."""

from dataclasses import asdict, dataclass, field

from torch import Tensor

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import load_state, save_state
from dgad_tk.common import UserError, reason_of, sha256_file
from dgad_tk.config.training import TrainConfig
from dgad_tk.distributed import from_all, world
from dgad_tk.training.epoch import Learner, Position
from dgad_tk.training.origin import check_origin, check_settings, settings_of

_KEYS = ("student", "statistics", "optimizer", "averaged", "state", "origin", "best_sha256")

Statistics = list[list[dict[str, Tensor]]]
"""By process and network: buffers by name."""


@dataclass(frozen=True)
class State:
    """How far a run is. Draws need no state: they are functions of epoch and image.

    Attributes:
        epoch: the one that it is in, from 0.
        position: how far that epoch has come.
        best_score: what epochs are compared by; the best so far.
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


@dataclass(frozen=True)
class Snapshots:
    """Where a run is saved to, and what belongs to it.

    Attributes:
        origin: what a run cannot change half-way, beside its config: a word for it, and what it is.
    """

    folder: RunFolder
    config: TrainConfig
    learner: Learner
    origin: dict[str, str]

    def statistics(self) -> Statistics:
        """Every process's buffers, in every process: running statistics are its own, unless sync_bn is on."""
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
        check_origin(folder, saved["origin"], self.origin)
        check_settings(folder, saved.get("settings", {}), self.config)  # of an older version, there are none
        if saved["best_sha256"] and not folder.best.is_file():
            raise UserError(f"'{folder.best}' is gone, and the run needs it", hint="start a new run")
        try:
            learner.student.load_state_dict(saved["student"])
            learner.optimizer.load_state_dict(saved["optimizer"])
            if learner.averaged is not None:
                learner.averaged.load_state_dict(saved["averaged"])
            for network, own in zip(learner.networks, saved["statistics"][world().rank], strict=True):
                network.load_state_dict(own, strict=False)
            state = dict(saved["state"])
            return State(**(state | {"position": Position(**state["position"])}))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise UserError(
                f"'{folder.last}' does not fit this run: {reason_of(error)}", hint="start a new run"
            ) from None
