"""fit(): the training loop. Every method, one loop, one student; resumes to the same weights bit for bit."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from safetensors.torch import save
from torch import nn

from dgad_tk.artifacts.record import Artifact, tool_versions
from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import save_weights
from dgad_tk.ascent.folded import Inner
from dgad_tk.common import UserError, written_aside
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import Dataset, Split
from dgad_tk.distributed import largest, leaders, world
from dgad_tk.draws import Draws
from dgad_tk.methods import Method
from dgad_tk.models import build_model, check_input
from dgad_tk.models.trained import average_statistics, layout, synchronised
from dgad_tk.training.epoch import Epoch, Learner, NonFiniteLossError, OnProgress, Position
from dgad_tk.training.interrupt import StopRequest, stop_requests
from dgad_tk.training.origin import check_finished, name_new_places
from dgad_tk.training.selection import accuracies
from dgad_tk.training.snapshot import Snapshots, State
from dgad_tk.training.tensorboard import open_events

GO_ON, SAVE, STOP = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """One network to train.

    Attributes:
        config: resolved.
        folder: of the run.
        device: where to train.
        teacher: frozen, in eval mode; None for a method without one.
        teacher_name: its name with its file's SHA-256.
        role: what to call the network in progress messages.
        on_progress: called after each step and each epoch.
        on_stop: called in the signal handler when somebody asks the run to end.
        still_ours: called before each write; raises a UserError where the folder is another run's by now.
    """

    config: TrainConfig
    method: Method
    dataset: Dataset
    folder: RunFolder
    device: torch.device
    teacher: nn.Module | None = None
    teacher_name: str = ""
    role: str = "student"
    on_progress: OnProgress | None = None
    on_stop: Callable[[], None] = lambda: None
    still_ours: Callable[[], None] = lambda: None


def training_split(config: TrainConfig, dataset: Dataset) -> Split:
    """The images that a run trains on."""
    split = dataset.train if config.select_on == "val" else dataset.train_and_val
    return split.subset(config.limit_train) if config.limit_train else split


def fit(job: Job) -> None:
    """Train one network into the job's folder, from its last checkpoint if there is one.

    Ctrl-C and SIGTERM save the run first. Among several processes, only the leader writes. Of a run that is resumed,
    the SHA-256 of its images and teacher count, not where they lie: the folder names the new places from then on.

    Raises:
        UserError: the loss is not finite, the checkpoint cannot be read, or the run was begun with other images,
            another teacher or other settings.
        KeyboardInterrupt: somebody asked the run to end; it is saved.
    """
    if job.folder.finished():
        check_finished(job.config, job.folder, job.dataset, job.teacher_name)
        return
    with stop_requests(job.on_stop) as request:
        _Run(job, request).go()


class _Run:
    """One call of `fit`: its job, the learner, and how far it is."""

    def __init__(self, job: Job, request: StopRequest) -> None:
        config = job.config
        self.job, self.config, self.dataset, self.folder = job, config, job.dataset, job.folder
        self.request, self.device, self.here = request, job.device, world()
        self.draws, self.inner = Draws(config.seed), Inner(config.precision, config.compile)
        self.selection = job.dataset.val if config.select_on == "val" else job.dataset.test
        self.mean, self.std = job.dataset.statistics() if config.normalize == "dataset" else ((), ())
        self.learner = Learner(config, self._student())
        self.loop = Epoch(
            config,
            job.method,
            self.learner,
            None if job.teacher is None else self.inner.view(job.teacher.to(job.device)),
            training_split(config, job.dataset),
            job.dataset.spec.augmentation,
            self.draws,
            job.device,
            job.role,
            job.on_progress,
        )
        processes = str(self.here.size)
        origin = {"teacher": job.teacher_name, "dataset": job.dataset.sha256, "number of processes": processes}
        self.snapshots = Snapshots(job.folder, config, self.learner, origin)
        self.state, self.saved_at, self.time_is_up = State(), time.monotonic(), False
        self.started = time.perf_counter()

    def _student(self) -> nn.Module:
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # torch's initialisers know no other source
            student = build_model(
                config.student,
                in_channels=self.dataset.shape[0],
                classes=len(self.dataset.classes),
                mean=self.mean,
                std=self.std,
            )
        check_input(student, config.student, self.dataset.shape, len(self.dataset.classes))
        if config.sync_bn:
            student = synchronised(student)
        return student.to(self.device, memory_format=layout(self.device))  # type: ignore[call-overload,no-any-return]

    def go(self) -> None:
        """From the last checkpoint to the end."""
        config = self.config
        resumed = self.folder.last.is_file()
        if resumed:
            self.state = self.snapshots.restore()
            self.started -= self.state.seconds  # by the processes that this one resumes
            self.time_is_up = self._out_of_time()
        if self.here.leads:
            self._prepare_to_write()
            self.folder.cut_back(self.state.epoch)
            for name in ("last", "best", "metrics", "config", "non-finite-batch"):
                for left in self.folder.path.glob(f".{name}-*"):
                    left.unlink()  # of a process that was killed while it wrote
        if resumed and leaders(self.here.leads and name_new_places(self.folder.best, self.dataset)):
            self._save()
        with open_events(self.folder.path / "tensorboard", self.state.epoch, self.here.leads) as note:
            while not self._done():
                metrics = self._epoch()
                if self.here.leads:
                    self._prepare_to_write()
                    self.folder.append({"event": "epoch", "epoch": self.state.epoch - 1, **metrics})
                    note(metrics, self.state.epoch)
                    if self.job.on_progress:
                        self.job.on_progress(replace(self.loop.progress, metrics=metrics))
                # Written last: it names the best weights, which are therefore there already.
                self._save()
        if self.here.leads:
            self._prepare_to_write()
            state = self.state
            ended = {"epoch": state.epoch, "best_epoch": state.best_epoch, "seconds": round(self._elapsed(), 3)}
            self.folder.append({"event": "end", "epochs": config.epochs, **ended})

    def _prepare_to_write(self) -> None:
        """See that the folder is this run's, and that its config.yaml says what this process does.

        It says something else where the run was resumed with other places, or where somebody changed it meanwhile.

        Raises:
            UserError: the folder is another run's.
        """
        self.job.still_ours()
        try:
            said = self.folder.config.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            said = ""
        if said != self.config.to_yaml():
            self.config.save(self.folder.config)

    def _done(self) -> bool:
        state, config = self.state, self.config
        judged = state.epoch % config.select_every == 0  # else the epoch may yet prove better
        if config.early_stop is not None and judged and state.epoch - 1 - state.best_epoch >= config.early_stop:
            return True
        return state.epoch >= config.epochs or (state.best_epoch >= 0 and self.time_is_up)

    def _elapsed(self) -> float:
        """Seconds of training so far, of this process and of those it resumed."""
        return time.perf_counter() - self.started

    def _out_of_time(self) -> bool:
        limit = self.config.max_seconds  # the leader's clock is everybody's
        return limit is not None and bool(largest(int(self.here.leads and self._elapsed() >= limit), self.device))

    def _epoch(self) -> dict[str, float]:
        """The rest of one epoch and the choice of the best; moves `state` to the next."""
        config, number = self.config, self.state.epoch
        try:
            metrics = self.loop.run(number, self.state.position, self._after_step)
        except NonFiniteLossError as error:
            raise self._explained(error) from None
        for network in self.learner.networks:
            average_statistics(network)
        training = self.state.position.seconds
        begun, state = time.perf_counter(), self.state
        self.time_is_up = self._out_of_time()  # asked once: a run that ends here has judged this epoch
        if number + 1 == config.epochs or (number + 1) % config.select_every == 0 or self.time_is_up:
            network = self.learner.best
            clean, robust = accuracies(
                network,
                self.selection,
                config.attack,
                self.draws,
                device=self.device,
                inner=self.inner,
                between=self._heed,
            )
            metrics |= {f"{config.select_on}_clean": clean, f"{config.select_on}_robust": robust}
            score = (clean, robust) if self.job.method.selected_by == "clean" else (robust, clean)
            if score > state.best_score:
                state = replace(state, best_score=score, best_epoch=number, best_clean=clean, best_robust=robust)
                if self.here.leads:
                    self._prepare_to_write()
                    save_weights(self.folder.best, network, self._artifact(state))
        self.state = replace(state, epoch=number + 1, position=Position())
        return metrics | {"seconds": round(training + time.perf_counter() - begun, 3)}

    def _after_step(self, position: Position) -> None:
        self.state = replace(self.state, position=position)
        minutes = self.config.checkpoint_minutes
        due = self.here.leads and minutes is not None and time.monotonic() - self.saved_at > 60 * minutes
        self._heed(due)

    def _heed(self, due: bool = False) -> None:
        """Save the run where it is due in one of the processes, and end it where one was asked to.

        Between two batches of the selection, too, which a resumed run begins anew.
        """
        decision = largest(STOP if self.request.asked else SAVE if due else GO_ON, self.device)
        if decision != GO_ON:
            self._save()
        if decision == STOP:
            raise KeyboardInterrupt

    def _save(self) -> None:
        statistics = self.snapshots.statistics()
        self.saved_at = time.monotonic()
        if self.here.leads:
            self._prepare_to_write()
            self.snapshots.write(replace(self.state, seconds=self._elapsed()), statistics)

    def _explained(self, error: NonFiniteLossError) -> UserError:
        """The error for the user, with what led to it beside the run."""
        path = self.folder.path / "non-finite-batch.safetensors"
        if self.here.leads:
            self._prepare_to_write()
            batch, made = error.batch, error.made
            tensors = {"x": batch.x, "y": batch.y, "logits": made.logits.detach(), "index": error.index}
            if made.x_adv is not None:
                tensors["x_adv"] = made.x_adv
            tensors |= {f"student.{name}": value for name, value in self.learner.student.state_dict().items()}
            about = {"epoch": batch.epoch, "terms": {name: float(term) for name, term in made.terms.items()}}
            content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            with written_aside(path) as aside:
                aside.write_bytes(save(content, metadata={"about": json.dumps(about)}))
        return UserError(
            f"{self.job.role}: {error}; the batch and the weights are in '{path}'",
            hint="lower the learning rate (--set lr=0.01), or clip the gradient (--set clip_grad=1)",
        )

    def _artifact(self, state: State) -> Artifact:
        config, dataset = self.config, self.dataset
        attacks = self.job.method.selected_by == "robust"
        return Artifact(
            model=config.student,
            classes=dataset.classes,
            input_shape=dataset.shape,
            dataset=dataset.name,
            dataset_options=dataset.options,
            method=config.method,
            teacher=self.job.teacher_name,
            threat=config.attack.model_dump() if attacks else {},
            normalize={"mean": list(self.mean), "std": list(self.std)} if self.mean else {},
            training={
                "epochs": config.epochs,
                "best_epoch": state.best_epoch + 1,
                "seed": config.seed,
                "limit_train": config.limit_train,
                "method_options": config.method_options,
                "averaging": config.averaging,
                "processes": self.here.size,
                "selected_on": config.select_on,
                "selected_by": self.job.method.selected_by,
                "selection_images": len(self.selection),
                "selection_threat": config.attack.model_dump(),
                "clean_accuracy": state.best_clean,
                "robust_accuracy": state.best_robust,
                "dataset_sha256": dataset.sha256,
            },
            versions=tool_versions(),
        )
