"""fit(): the training loop. Every method, one loop, one student; resumes to the same weights bit for bit."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch
from safetensors.torch import save
from torch import nn

from dgad_tk.artifact import Artifact, tool_versions
from dgad_tk.checkpoint import load_state, save_state, save_weights
from dgad_tk.common import UserError, reason_of, sha256_file, written_aside
from dgad_tk.config import TrainConfig
from dgad_tk.data import Dataset, Split
from dgad_tk.distributed import average_statistics, gathered, largest, layout, leaders, synchronised, world
from dgad_tk.draws import Draws
from dgad_tk.epoch import Epoch, Learner, NonFiniteLossError, OnProgress, Position
from dgad_tk.fold import Inner
from dgad_tk.interrupt import StopRequest, stop_requests
from dgad_tk.methods import Method
from dgad_tk.models import build_model, check_input
from dgad_tk.origin import check_finished, check_origin, check_settings, name_new_places, settings_of
from dgad_tk.runs import RunFolder
from dgad_tk.selection import accuracies
from dgad_tk.tensorboard import open_events

GO_ON, SAVE, STOP = 0, 1, 2


@dataclass(frozen=True)
class State:
    """What a checkpoint holds beside tensors. Draws need no state: they are functions of epoch and image."""

    epoch: int = 0
    position: Position = field(default_factory=Position)
    best_score: tuple[float, float] = (-1.0, -1.0)
    best_epoch: int = -1
    best_clean: float = 0.0
    best_robust: float = 0.0
    seconds: float = 0.0


def training_split(config: TrainConfig, dataset: Dataset) -> Split:
    """The images that a run trains on."""
    split = dataset.train if config.select_on == "val" else dataset.train_and_val
    return split.subset(config.limit_train) if config.limit_train else split


def fit(
    config: TrainConfig,
    method: Method,
    dataset: Dataset,
    folder: RunFolder,
    *,
    device: torch.device,
    teacher: nn.Module | None = None,
    teacher_name: str = "",
    role: str = "student",
    on_progress: OnProgress | None = None,
    on_stop: Callable[[], None] = lambda: None,
    still_ours: Callable[[], None] = lambda: None,
) -> RunFolder:
    """Train one network into `folder`, from its last checkpoint if there is one.

    Ctrl-C and SIGTERM save the run first. Among several processes, only the leader writes. Of a run that is resumed,
    the SHA-256 of its images and teacher count, not where they lie: the folder names the new places from then on.

    Args:
        config: resolved.
        device: where to train.
        teacher: frozen, in eval mode.
        role: what to call the network in progress messages.
        on_stop: called in the signal handler when somebody asks the run to end.
        still_ours: called before each write; raises a UserError where the folder is another run's by now.

    Raises:
        UserError: the loss is not finite, the checkpoint cannot be read, or the run was begun with other images,
            another teacher or other settings.
        KeyboardInterrupt: somebody asked the run to end; it is saved.
    """
    if folder.finished():
        check_finished(config, folder, dataset, teacher_name)
        return folder
    with stop_requests(on_stop) as request:
        run = _Run(
            config, method, dataset, folder, device, teacher, teacher_name, role, on_progress, request, still_ours
        )
        run.go()
    return folder


class _Run:
    """One call of `fit`: what it was given, the learner, and how far it is."""

    def __init__(
        self,
        config: TrainConfig,
        method: Method,
        dataset: Dataset,
        folder: RunFolder,
        device: torch.device,
        teacher: nn.Module | None,
        teacher_name: str,
        role: str,
        on_progress: OnProgress | None,
        request: StopRequest,
        still_ours: Callable[[], None],
    ) -> None:
        self.config, self.method, self.dataset, self.folder = config, method, dataset, folder
        self.device, self.teacher_name, self.on_progress, self.request = device, teacher_name, on_progress, request
        self.draws, self.here, self.inner = Draws(config.seed), world(), Inner(config.precision, config.compile)
        self.still_ours, self.settings = still_ours, config.to_yaml()
        self.split = training_split(config, dataset)
        self.selection = dataset.val if config.select_on == "val" else dataset.test
        self.mean, self.std = dataset.statistics() if config.normalize == "dataset" else ((), ())
        self.learner = Learner(config, self._student())
        if teacher is not None:
            teacher = self.inner.view(teacher.to(device))
        self.loop = Epoch(
            config,
            method,
            self.learner,
            teacher,
            self.split,
            dataset.spec.augmentation,
            self.draws,
            device,
            role,
            on_progress,
        )
        self.state, self.saved_at, self.time_is_up = State(), time.monotonic(), False
        self.seconds_before, self.started = 0.0, time.perf_counter()

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
            self._restore()
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
                    if self.on_progress:
                        self.on_progress(replace(self.loop.progress, metrics=metrics))
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
        self.still_ours()
        try:
            said = self.folder.config.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            said = ""
        if said != self.settings:
            self.config.save(self.folder.config)

    def _done(self) -> bool:
        state, config = self.state, self.config
        judged = state.epoch % config.select_every == 0  # else the epoch may yet prove better
        if config.early_stop is not None and judged and state.epoch - 1 - state.best_epoch >= config.early_stop:
            return True
        return state.epoch >= config.epochs or (state.best_epoch >= 0 and self.time_is_up)

    def _elapsed(self) -> float:
        """Seconds of training so far, of this process and of those it resumed."""
        return self.seconds_before + time.perf_counter() - self.started

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
        for network in self.learner.networks:  # also with sync_bn, which knows BatchNorm2d alone
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
                between=self._between_batches,
            )
            metrics |= {f"{config.select_on}_clean": clean, f"{config.select_on}_robust": robust}
            score = (clean, robust) if self.method.selected_by == "clean" else (robust, clean)
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
        decision = largest(STOP if self.request.asked else SAVE if due else GO_ON, self.device)
        if decision != GO_ON:
            self._save()
        if decision == STOP:
            raise KeyboardInterrupt

    def _between_batches(self) -> None:
        """Of the selection, which a resumed run begins anew."""
        if largest(STOP if self.request.asked else GO_ON, self.device) == STOP:
            self._save()
            raise KeyboardInterrupt

    def _save(self) -> None:
        """Write last.ckpt: what `_restore` needs to go on as if nothing had happened."""
        learner = self.learner
        own = [{name: buffer.cpu() for name, buffer in network.named_buffers()} for network in learner.networks]
        statistics = gathered(own)  # each process has its own, unless BatchNorm is synchronised
        self.saved_at = time.monotonic()
        if not self.here.leads:
            return
        self._prepare_to_write()
        save_state(
            self.folder.last,
            {
                "student": learner.student.state_dict(),
                "statistics": statistics,
                "optimizer": learner.optimizer.state_dict(),
                "averaged": learner.averaged.state_dict() if learner.averaged is not None else {},
                "state": asdict(replace(self.state, seconds=self._elapsed())),
                "origin": self._origin(),
                "settings": settings_of(self.config),
                "best_sha256": sha256_file(self.folder.best) if self.folder.best.is_file() else "",
            },
        )

    def _restore(self) -> None:
        """Put the run back to its last checkpoint.

        Raises:
            UserError: the checkpoint is damaged, or was made with another teacher, other images or another number of
                processes.
        """
        folder, learner = self.folder, self.learner
        keys = ("student", "statistics", "optimizer", "averaged", "state", "origin", "best_sha256")
        saved = load_state(folder.last, keys)
        check_origin(folder, saved["origin"], self._origin())
        check_settings(folder, saved.get("settings", {}), self.config)  # of an older version, there are none
        if saved["best_sha256"] and not folder.best.is_file():
            raise UserError(f"'{folder.best}' is gone, and the run needs it", hint="start a new run")
        try:
            learner.student.load_state_dict(saved["student"])
            learner.optimizer.load_state_dict(saved["optimizer"])
            if learner.averaged is not None:
                learner.averaged.load_state_dict(saved["averaged"])
            for network, own in zip(learner.networks, saved["statistics"][self.here.rank], strict=True):
                network.load_state_dict(own, strict=False)
            state = dict(saved["state"])
            self.state = State(**(state | {"position": Position(**state["position"])}))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise UserError(
                f"'{folder.last}' does not fit this run: {reason_of(error)}", hint="start a new run"
            ) from None
        self.seconds_before = self.state.seconds

    def _origin(self) -> dict[str, str]:
        """What a run cannot change half-way, beside its config."""
        return {
            "teacher": self.teacher_name,
            "dataset": self.dataset.sha256,
            "number of processes": str(self.here.size),
        }

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
            f"{self.loop.role}: {error}; the batch and the weights are in '{path}'",
            hint="lower the learning rate (--set lr=0.01), or clip the gradient (--set clip_grad=1)",
        )

    def _artifact(self, state: State) -> Artifact:
        config, dataset = self.config, self.dataset
        attacks = self.method.selected_by == "robust"
        return Artifact(
            model=config.student,
            classes=dataset.classes,
            input_shape=dataset.shape,
            dataset=dataset.name,
            dataset_options=dataset.options,
            method=config.method,
            teacher=self.teacher_name,
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
                "selected_by": self.method.selected_by,
                "selection_images": len(self.selection),
                "selection_threat": config.attack.model_dump(),
                "clean_accuracy": state.best_clean,
                "robust_accuracy": state.best_robust,
                "dataset_sha256": dataset.sha256,
            },
            versions=tool_versions(),
        )
