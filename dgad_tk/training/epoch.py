"""One pass over the training images, and what it tells whoever watches."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from dgad_tk.ascent.folded import Inner, autocast
from dgad_tk.ascent.inner_max import draw_noise, kept_statistics
from dgad_tk.config.training import TrainConfig, epoch_of
from dgad_tk.data import Augmentation, Split
from dgad_tk.data.augment import augment
from dgad_tk.data.batches import batch_positions, on_device
from dgad_tk.distributed import World, across, world
from dgad_tk.draws import Draws
from dgad_tk.methods import Batch, Method, Step
from dgad_tk.models.trained import shared
from dgad_tk.training.schedule import learning_rate


@dataclass(frozen=True)
class Progress:
    """Where a run stands, handed to `on_progress` after each step and, with `metrics`, after each epoch."""

    role: str
    epoch: int
    epochs: int
    step: int
    steps: int
    terms: dict[str, float]
    samples_per_second: float
    metrics: dict[str, float] | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Position:
    """How far an epoch has come.

    Attributes:
        step: steps done.
        seen: images seen.
        totals: sum over the images of each loss term, and of the accuracy.
        seconds: time taken.
    """

    step: int = 0
    seen: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class NonFiniteLossError(Exception):
    """The loss became NaN or infinite.

    Args:
        loss: what it became.
        step: of the epoch, from 1.
        batch: the one that led there.
        made: the step made of it.
        index: dataset indices of the images of all processes.
    """

    def __init__(self, loss: float, step: int, batch: Batch, made: Step, index: Tensor) -> None:
        super().__init__(f"the loss became {loss} in epoch {batch.epoch + 1}, step {step}")
        self.batch, self.made, self.index = batch, made, index


class Learner:
    """A student, what trains it, and the average of its weights where one is kept."""

    def __init__(self, config: TrainConfig, student: nn.Module) -> None:
        self.config, self.student = config, student
        self.shared = shared(student)
        self.optimizer = torch.optim.SGD(
            student.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        average = (
            get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
            if config.averaging == "ema"
            else get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
        )
        # With BatchNorm's statistics: a fresh pass over clean images would lose those of the adversarial ones.
        self.averaged = (
            None
            if config.averaging == "none"
            else AveragedModel(student, multi_avg_fn=_but_counts(average), use_buffers=True)
        )

    @property
    def networks(self) -> list[nn.Module]:
        """The student and, where one is kept, the average."""
        return [self.student] if self.averaged is None else [self.student, self.averaged]

    @property
    def best(self) -> nn.Module:
        """The network to select and save: the average, once there is one."""
        if self.averaged is None or int(self.averaged.n_averaged) == 0:
            return self.student
        return self.averaged.module

    def learn(self, rate: float) -> None:
        """One step of the optimiser, once the gradients are there."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_grad)
        self.optimizer.step()
        if self.averaged is not None and self.config.averaging == "ema":
            self.averaged.update_parameters(self.student)

    def end_epoch(self, epoch: int) -> None:
        """Take the epoch's last weights into a plain average that has begun."""
        if self.averaged is None or self.config.averaging != "swa":
            return
        begun = epoch_of(self.config.swa_start, self.config.epochs)
        if int(self.averaged.n_averaged) <= epoch - begun:  # else a resumed run has it already
            self.averaged.update_parameters(self.student)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Move each weight tensor along its gradient by `awp_gamma` of its norm, and back."""
        before: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            for weight in self.student.parameters():
                if weight.ndim > 1 and weight.grad is not None:
                    before.append((weight, weight.clone()))
                    scale = weight.norm() / weight.grad.norm().clamp(min=1e-20)
                    weight.add_(weight.grad * scale, alpha=self.config.awp_gamma)
        try:
            yield
        finally:
            with torch.no_grad():
                for moved, value in before:
                    moved.copy_(value)


def _but_counts(average: Callable[..., None]) -> Callable[..., None]:
    """`average` of floating tensors; integers, BatchNorm's counts of batches, are taken over as they are."""

    def update(averaged: list[Tensor], current: list[Tensor], number: Tensor) -> None:
        if averaged[0].is_floating_point():
            average(averaged, current, number)
        else:
            for held, value in zip(averaged, current, strict=True):
                held.copy_(value)

    return update


@dataclass
class Epoch:
    """One pass over the training images, in part or in whole."""

    config: TrainConfig
    method: Method
    learner: Learner
    teacher: nn.Module | None
    split: Split
    augmentation: Augmentation
    draws: Draws
    device: torch.device
    role: str
    on_progress: OnProgress | None

    def run(self, epoch: int, begin: Position, after_step: Callable[[Position], None]) -> dict[str, float]:
        """Train from `begin` to the epoch's end; mean of each loss term and the accuracy on what was trained on.

        Args:
            after_step: told how far it is; what it raises ends the epoch there.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite.
        """
        config, here = self.config, world()
        order = self.draws.permutation("order", len(self.split), epoch=epoch)
        # Each process needs an image of every batch, and more than one where BatchNorm's batch is its own.
        batches = list(batch_positions(order, config.batch_size, smallest=2 * here.size))
        self.learner.student.train()
        self.progress = Progress(self.role, epoch, config.epochs, begin.step, len(batches), {}, 0.0)
        at, started = begin, time.perf_counter()
        rate = learning_rate(config, epoch + max(begin.step - 1, 0) / len(batches))
        for number in range(begin.step, len(batches)):
            rate = learning_rate(config, epoch + number / len(batches))
            found = self._step(batches[number], epoch, number, rate, here)
            n = len(batches[number])
            totals = {name: at.totals.get(name, 0.0) + value * n for name, value in found.items()}
            running = time.perf_counter() - started
            at = Position(number + 1, at.seen + n, totals, begin.seconds + running)
            pace = (at.seen - begin.seen) / running
            self.progress = replace(self.progress, step=at.step, terms=_means(at), samples_per_second=pace)
            if self.on_progress and here.leads:
                self.on_progress(self.progress)
            after_step(at)
        self.learner.end_epoch(epoch)
        return {"lr": rate, **_means(at), "samples_per_second": round(self.progress.samples_per_second, 1)}

    def _step(
        self, positions: NDArray[np.int64], epoch: int, number: int, rate: float, here: World
    ) -> dict[str, float]:
        config, learner = self.config, self.learner
        own = np.array_split(positions, here.size)[here.rank]
        images, labels, index = on_device(self.split, own, self.device)
        x = augment(images, augmentation=self.augmentation, draws=self.draws, index=index, epoch=epoch)
        batch = Batch(
            x,
            labels,
            partial(draw_noise, self.draws, "attack", x.shape[1:], index, epoch=epoch),
            config.batch_size,
            epoch,
            config.epochs,
            n=len(positions),
            across=across,
            inner=Inner(config.precision, config.compile),
        )
        with self._seeded(epoch, number, here.rank):
            step = self._gradients(batch)
        accuracy = batch.mean((step.logits.detach().argmax(dim=1) == labels).to(step.logits.dtype))
        names = ["loss", "accuracy", *step.terms]
        values = torch.stack([step.loss.detach(), accuracy, *step.terms.values()]).tolist()  # one wait for the device
        found = dict(zip(names, values, strict=True))
        if not math.isfinite(found["loss"]):
            raise NonFiniteLossError(
                found["loss"], number + 1, batch, step, torch.from_numpy(self.split.index[positions])
            )
        learner.learn(rate)
        return found

    @contextmanager
    def _seeded(self, epoch: int, number: int, rank: int) -> Iterator[None]:
        """torch's own generator, made a function of the step: Dropout in networks of libraries knows no other."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            word = self.draws.words("torch", (1,), index=torch.tensor([number]), epoch=epoch, step=rank)
            torch.default_generator.manual_seed(int(word))
            if self.device.type == "cuda":
                torch.cuda.manual_seed(int(word))
            yield

    def _gradients(self, batch: Batch) -> Step:
        """The method's step, and its gradients in the student, on perturbed weights where the config says so."""
        if self.config.awp_gamma == 0 or batch.epoch < epoch_of(self.config.awp_start, self.config.epochs):
            return self._backward(batch)
        with kept_statistics(self.learner.student):
            first = self._backward(batch)
        with self.learner.perturbed():
            return self._backward(replace(batch, x_adv=first.x_adv))

    def _backward(self, batch: Batch) -> Step:
        with autocast(self.config.outer_precision, self.device):
            step = self.method.step(self.learner.shared, self.teacher, batch, self.config.attack)
        self.learner.optimizer.zero_grad(set_to_none=True)
        step.loss.backward()  # type: ignore[no-untyped-call]
        return step


def _means(at: Position) -> dict[str, float]:
    return {name: total / at.seen for name, total in at.totals.items()}
