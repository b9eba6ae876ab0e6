"""fit(): the training loop. One loop for every method; it resumes to the same weights, bit for bit."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from dgad_tk.artifacts.record import Artifact, tool_versions
from dgad_tk.artifacts.weights import apart, save_weights
from dgad_tk.common import UserError, written_aside
from dgad_tk.config.training import TrainConfig
from dgad_tk.distributed import by_leader, largest, leaders, world
from dgad_tk.models import build_model, check_input, normalised
from dgad_tk.models.trained import average_statistics, layout, synchronised
from dgad_tk.training.epoch import Loop, NonFiniteLossError, Position
from dgad_tk.training.interrupt import StopRequest, stop_requests
from dgad_tk.training.job import Job
from dgad_tk.training.learner import Learner, late_statistics
from dgad_tk.training.selection import accuracies
from dgad_tk.training.snapshot import Snapshots, State, check_finished, name_new_places
from dgad_tk.training.tensorboard import open_events

GO_ON, SAVE, STOP = 0, 1, 2


def fit(job: Job) -> None:
    """Train one network into the job's folder, from its last checkpoint if there is one.

    Ctrl-C and SIGTERM save the run first. Among several processes, only the leader writes. A run may be resumed with
    images and a teacher that lie elsewhere, if their SHA-256 is the same; the folder then names the new places.

    Raises:
        UserError: the loss is not finite, the checkpoint cannot be read, or the run was begun with other images,
            another teacher or other settings.
        KeyboardInterrupt: somebody asked the run to end; it is saved.
    """
    if leaders(job.folder.finished()):
        by_leader(lambda: check_finished(job))
        return
    with stop_requests(job.watcher.stopping) as request:
        _Run(job, request).go()


class _Run:
    """One call of `fit`: its job, the learner, and how far it is."""

    def __init__(self, job: Job, request: StopRequest) -> None:
        self.job, self.config, self.folder, self.request, self.here = job, job.config, job.folder, request, world()
        self.text = job.config.to_yaml()
        self.selection = job.dataset.val if job.config.select_on == "val" else job.dataset.test
        self.mean, self.std = job.dataset.statistics() if job.config.normalize == "dataset" else ((), ())
        if job.start is not None:
            self.mean, self.std = job.start.mean or self.mean, job.start.std or self.std
        self.learner = Learner(job.config, self._student())
        self.loop = Loop(job, self.learner)
        self.snapshots = Snapshots(job, self.learner)
        self.state, self.saved_at, self.time_is_up = State(), time.monotonic(), False
        self.started = time.perf_counter()

    def _student(self) -> nn.Module:
        config, dataset, device = self.config, self.job.dataset, self.job.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # torch's initialisers draw from no other generator
            if self.job.start is not None:
                student: nn.Module = normalised(self.job.start.build(), self.mean, self.std)
            else:
                student = build_model(
                    config.student,
                    in_channels=dataset.shape[0],
                    classes=len(dataset.classes),
                    mean=self.mean,
                    std=self.std,
                )
            # Under the seed too: a lazy layer of a user's network draws its weights at the first images.
            own = bool(self.job.network)
            check_input(student, config.student, dataset.shape, len(dataset.classes), own=own)
        if config.sync_bn:
            student = synchronised(student)
        return student.to(device, memory_format=layout(device))  # type: ignore[call-overload,no-any-return]

    def go(self) -> None:
        """From the last checkpoint to the end."""
        resumed = self.folder.last.is_file()
        if resumed:
            self.state = self.snapshots.restore()
            self.started -= self.state.seconds  # spent by the processes that this one resumes
            self.time_is_up = self._out_of_time()
        elif not (self.config.freeze_bn or self.job.start):
            parts = self.config.accumulate * -(-len(self.loop.split) // self.config.batch_size)
            if doubt := late_statistics(self.learner.student, parts * self.config.epochs):
                self.job.watcher.message(f"warning: {self.job.role}: {doubt}")
        self._write(self._clear)
        if resumed and leaders(self.here.leads and name_new_places(self.folder, self.job.dataset)):
            self._save()
        with open_events(self.folder.path / "tensorboard", self.state.epoch, self.here.leads) as note:
            while not self._done():
                metrics = self._epoch()
                line = {"event": "epoch", "epoch": self.state.epoch - 1, **metrics}
                self._write(partial(self.folder.append, line))
                note(metrics, self.state.epoch)
                self.job.watcher.progress(replace(self.loop.progress, metrics=metrics))
                self._save()  # last: it names the best weights, which must be there already
        state = self.state
        ended = {"epoch": state.epoch, "best_epoch": state.best_epoch, "seconds": round(self._elapsed(), 3)}
        self._write(lambda: self.folder.append({"event": "end", "epochs": self.config.epochs, **ended}))

    def _write(self, change: Callable[[], None]) -> None:
        """Let the leader change the folder, once it has seen that the folder is this run's.

        config.yaml is written again if it differs: the run was resumed with other places, or somebody changed it.

        Raises:
            UserError: the folder is another run's.
        """
        if not self.here.leads:
            return
        self.job.still_ours()
        try:
            said = self.folder.config.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            said = ""
        if said != self.text:
            self.config.save(self.folder.config)
        change()

    def _clear(self) -> None:
        """Remove what a killed process left: lines of epochs that are run again, and half-written files."""
        self.folder.cut_back(self.state.epoch)
        for name in ("last", "best", "metrics", "config", "images", "report", "non-finite-batch"):
            for left in self.folder.path.glob(f".{name}-*"):
                left.unlink()

    def _done(self) -> bool:
        state, config = self.state, self.config
        judged = state.epoch % config.select_every == 0  # else the epoch may yet prove better
        if config.early_stop is not None and judged and state.epoch - 1 - state.best_epoch >= config.early_stop:
            return True
        return state.epoch >= config.epochs or (state.best_epoch >= 0 and self.time_is_up)

    def _elapsed(self) -> float:
        """Seconds of training so far, including the processes that this one resumes."""
        return time.perf_counter() - self.started

    def _out_of_time(self) -> bool:
        """Whether max_seconds have passed on the leader's clock."""
        limit = self.config.max_seconds
        return limit is not None and leaders(self._elapsed() >= limit)

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
                self.loop.draws,
                device=self.job.device,
                batch_size=self.loop.at_once * self.here.size,
                inner=self.loop.inner,
                between=self._heed,
            )
            metrics |= {f"{config.select_on}_clean": clean, f"{config.select_on}_robust": robust}
            score = (clean, robust) if self.job.method.selected_by == "clean" else (robust, clean)
            if score > state.best_score:
                state = replace(state, best_score=score, best_epoch=number, best_clean=clean, best_robust=robust)
                graph = self.job.start.graph if self.job.start is not None else b""
                self._write(lambda: save_weights(self.folder.best, network, self._artifact(state), graph))
        self.state = replace(state, epoch=number + 1, position=Position())
        return metrics | {"seconds": round(training + time.perf_counter() - begun, 3)}

    def _after_step(self, position: Position) -> None:
        self.state = replace(self.state, position=position)
        if (examples := self.loop.examples) is not None:  # before a checkpoint that says the epoch's steps are done
            self.loop.examples = None
            self._write(partial(examples.save, self.folder.images))
        minutes = self.config.checkpoint_minutes
        self._heed(self.here.leads and minutes is not None and time.monotonic() - self.saved_at > 60 * minutes)

    def _heed(self, due: bool = False) -> None:
        """Save the run if that is due in one of the processes, and end it if one was asked to.

        This also happens between two batches of the selection, which a resumed run begins anew.
        """
        decision = largest(STOP if self.request.asked else SAVE if due else GO_ON, self.job.device)
        if decision != GO_ON:
            self._save()
        if decision == STOP:
            raise KeyboardInterrupt

    def _save(self) -> None:
        statistics = self.snapshots.statistics()
        self.saved_at = time.monotonic()
        self._write(lambda: self.snapshots.write(replace(self.state, seconds=self._elapsed()), statistics))

    def _explained(self, error: NonFiniteLossError) -> UserError:
        """The error for the user; the batch and the weights that led to it are left in the run folder."""
        path, batch, step = self.folder.non_finite, error.batch, error.step
        tensors = {"x": batch.x, "y": batch.y, "logits": step.logits, "index": error.index}
        if step.x_adv is not None:
            tensors["x_adv"] = step.x_adv
        tensors |= {f"student.{name}": value for name, value in self.learner.student.state_dict().items()}
        about = {"epoch": batch.epoch, "terms": {name: float(term) for name, term in step.terms.items()}}
        content = apart(tensors)

        def leave() -> None:
            with written_aside(path) as aside:
                aside.write_bytes(save(content, metadata={"about": json.dumps(about)}))

        self._write(leave)
        return UserError(
            f"{self.job.role}: {error}; the batch and the weights are in '{path}'",
            hint="lower the learning rate (--set lr=0.01), or clip the gradient (--set clip_grad=1)",
        )

    def _artifact(self, state: State) -> Artifact:
        config, dataset, selected_by = self.config, self.job.dataset, self.job.method.selected_by
        return Artifact(
            model=config.student,
            network=self.job.network,
            classes=dataset.classes,
            input_shape=dataset.shape,
            dataset=dataset.name,
            dataset_options=dataset.options,
            method=config.method,
            teacher=self.job.teacher_name,
            threat=config.attack.model_dump() if selected_by == "robust" else {},
            normalize={"mean": list(self.mean), "std": list(self.std)} if self.mean else {},
            training={
                "epochs": config.epochs,
                "best_epoch": state.best_epoch + 1,
                "seed": config.seed,
                "limit_train": config.limit_train,
                "method_options": config.method_options,
                "averaging": config.averaging,
                **config.changed(
                    "optimizer", "accumulate", "freeze_bn", "bn_momentum", "decay_weights_only", "augment"
                ),
                "processes": self.here.size,
                "selected_on": config.select_on,
                "selected_by": selected_by,
                "selection_images": len(self.selection),
                "selection_threat": config.attack.model_dump(),
                "clean_accuracy": state.best_clean,
                "robust_accuracy": state.best_robust,
                "dataset_sha256": dataset.sha256,
            }
            | (dict(self.job.start.said) if self.job.start is not None else {})
            | ({"paper": printed} if (printed := _printed(config)) else {}),
            versions=tool_versions(),
        )


def _printed(config: TrainConfig) -> dict[str, Any]:
    """What the record says of the paper: the figures and where they are from, not how to come by the teacher."""
    return {key: value for key, value in config.paper.items() if key in ("table", "row", "figures", "source", "recipe")}
