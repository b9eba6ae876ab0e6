"""One epoch: from the order of its images to the last step of the optimizer."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dgad_tk.artifacts.examples import MOST, Examples
from dgad_tk.ascent.folded import Inner, autocast
from dgad_tk.ascent.inner_max import draw_noise
from dgad_tk.config.moments import begun_at
from dgad_tk.data.augment import augment, augment_by, chosen_augments
from dgad_tk.data.batches import batch_positions, on_device
from dgad_tk.distributed import across, least, world
from dgad_tk.draws import Draws
from dgad_tk.methods import Batch, Step
from dgad_tk.models.trained import InParts, kept_statistics
from dgad_tk.training.job import Job, Progress, training_split
from dgad_tk.training.learner import Learner, images_at_once, learning_rate


@dataclass(frozen=True)
class Position:
    """How far an epoch has come.

    Attributes:
        step: steps done.
        seen: images seen.
        totals: sum over the images of each loss term and of the accuracy.
        seconds: time taken.
    """

    step: int = 0
    seen: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def means(self) -> dict[str, float]:
        """Mean over the images seen of each loss term and of the accuracy."""
        return {name: total / self.seen for name, total in self.totals.items()}


class NonFiniteLossError(Exception):
    """The loss became NaN or infinite.

    Args:
        loss: its value.
        number: of the step in its epoch, from 1.
        batch: of that step.
        step: what the method made of the batch.
        index: dataset indices of the images of all processes.
    """

    def __init__(self, loss: float, number: int, batch: Batch, step: Step, index: Tensor) -> None:
        super().__init__(f"the loss became {loss} in epoch {batch.epoch + 1}, step {number}")
        self.batch, self.step, self.index = batch, step, index


class Readout:
    """Loss, accuracy and terms of a step, whose backward pass has not been started.

    On a card the copy is queued behind the forward passes and before the backward pass. So `read` waits for the former
    alone, and the host prepares what comes next while the card is busy with the latter.
    """

    def __init__(self, step: Step, batch: Batch) -> None:
        with torch.no_grad():
            accuracy = batch.mean((step.logits.argmax(dim=1) == batch.y).to(step.logits.dtype))
            values = torch.stack([step.loss.detach(), accuracy, *step.terms.values()])
        self.names = ["loss", "accuracy", *step.terms]
        self.values = values.to("cpu", non_blocking=True)  # into page-locked memory, if it comes from a card
        self.copied: torch.cuda.Event | None = None
        if values.is_cuda:
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.copied.record()

    def read(self) -> dict[str, float]:
        """The values by their names, once they have come; the one wait for the device in a step."""
        if self.copied is not None:
            self.copied.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


class Loop:
    """The steps of all epochs of one job."""

    def __init__(self, job: Job, learner: Learner) -> None:
        self.job, self.config, self.learner, self.here = job, job.config, learner, world()
        self.split, self.draws = training_split(job.config, job.dataset), Draws(job.config.seed)
        recorded = job.config.cuda_graph and job.device.type == "cuda"
        self.inner = Inner(job.config.precision, job.config.compile, recorded, note=job.watcher.message)
        self.chosen = chosen_augments(job.config.augment)
        self.at_once = images_at_once(job.config)
        self.teacher: nn.Module | None = None
        if job.teacher is not None:
            self.teacher = InParts(self.inner.view(job.teacher.to(job.device)), self.at_once)
        self.examples: Examples | None = None  # of an epoch's last step, on the leader

    def run(self, epoch: int, begin: Position, after_step: Callable[[Position], None]) -> dict[str, float]:
        """Train from `begin` to the end of the epoch; mean of each loss term and accuracy on the training images.

        Args:
            after_step: gets the position after each step; what it raises ends the epoch there.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite.
        """
        config = self.config
        order = self.draws.permutation("order", len(self.split), epoch=epoch)
        # Each process gets two images of every batch at least: BatchNorm has no variance of one.
        batches = list(batch_positions(order, config.batch_size, smallest=2 * self.here.size))
        self.learner.begin_epoch()
        self.progress = Progress(self.job.role, epoch, config.epochs, begin.step, len(batches), {}, 0.0)
        at, started = begin, time.perf_counter()
        rate = learning_rate(config, epoch + max(begin.step - 1, 0) / len(batches))
        for number in range(begin.step, len(batches)):
            rate = learning_rate(config, epoch + number / len(batches))
            found = self._step(batches[number], epoch, number, rate, keep=number + 1 == len(batches))
            n = len(batches[number])
            totals = {name: at.totals.get(name, 0.0) + value * n for name, value in found.items()}
            running = time.perf_counter() - started
            at = Position(number + 1, at.seen + n, totals, begin.seconds + running)
            pace = (at.seen - begin.seen) / running
            self.progress = replace(self.progress, step=at.step, terms=at.means(), samples_per_second=pace)
            self.job.watcher.progress(self.progress)
            after_step(at)
        self.learner.end_epoch(epoch)
        return {"lr": rate, **at.means(), "samples_per_second": round(self.progress.samples_per_second, 1)}

    def _step(
        self, positions: NDArray[np.int64], epoch: int, number: int, rate: float, *, keep: bool
    ) -> dict[str, float]:
        """One step on the images at `positions`, of which this process computes its part; loss, accuracy and terms.

        Args:
            keep: leave some of its images in `examples`.
        """
        config = self.config
        own = np.array_split(positions, self.here.size)[self.here.rank]
        images, labels, index = on_device(self.split, own, self.job.device)
        x = self._augmented(images, index, epoch)
        batch = Batch(
            x,
            labels,
            partial(draw_noise, self.draws, "attack", x.shape[1:], index, epoch=epoch),
            config.batch_size,
            epoch,
            config.epochs,
            n=len(positions),
            across=across,
            inner=self.inner,
            most=self.at_once,
            least=least,
            memory=self.learner.memory,
        )
        with self._seeded(epoch, number):
            step, readout = self._gradients(batch)
        found = readout.read()
        if not math.isfinite(found["loss"]):
            every = torch.from_numpy(self.split.index[positions])
            raise NonFiniteLossError(found["loss"], number + 1, batch, step, every)
        self.learner.learn(rate)
        self.learner.memory = step.memory
        if keep and self.here.leads:
            self.examples = _examples(batch, step, index)
        return found

    def _augmented(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Images as the config says, or else as is usual for the dataset; float32 in [0, 1]."""
        if self.chosen is not None:
            return augment_by(self.chosen, images, draws=self.draws, index=index, epoch=epoch)
        usual = self.job.dataset.spec.augmentation
        return augment(images, augmentation=usual, draws=self.draws, index=index, epoch=epoch)

    @contextmanager
    def _seeded(self, epoch: int, number: int) -> Iterator[None]:
        """Seed torch's own generator by the step: Dropout in the networks of libraries draws from no other."""
        cuda = self.job.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.job.device] if cuda else []):
            word = self.draws.words("torch", (1,), index=torch.tensor([number]), epoch=epoch, step=self.here.rank)
            torch.default_generator.manual_seed(int(word))
            if cuda:
                torch.cuda.manual_seed(int(word))
            yield

    def _gradients(self, batch: Batch) -> tuple[Step, Readout]:
        """The method's step and its gradients in the student, on perturbed weights once the config says so."""
        if self.config.awp_gamma == 0 or batch.epoch < begun_at(self.config.awp_start, self.config.epochs):
            return self._backward(batch)
        with kept_statistics(self.learner.student):
            first, _ = self._backward(batch)
        with self.learner.perturbed():
            return self._backward(replace(batch, x_adv=first.x_adv))

    def _backward(self, batch: Batch) -> tuple[Step, Readout]:
        with autocast(self.config.outer_precision, self.job.device):
            step = self.job.method.step(self.learner.shared, self.teacher, batch, self.config.attack)
        readout = Readout(step, batch)
        self.learner.optimizer.zero_grad(set_to_none=True)
        step.loss.backward()  # type: ignore[no-untyped-call]
        return step, readout


def _examples(batch: Batch, step: Step, index: Tensor) -> Examples:
    """The first images of a batch and what the step made of them."""

    def kept(values: Tensor) -> NDArray[Any]:
        found: NDArray[Any] = values[:MOST].detach().cpu().contiguous().numpy()
        return found

    def answers(logits: Tensor | None) -> NDArray[np.int64] | None:
        return None if logits is None else kept(logits.argmax(dim=1))

    attacked = step.x_adv is not None
    return Examples(
        epoch=batch.epoch,
        index=kept(index),
        label=kept(batch.y),
        clean=kept(batch.x),
        adversarial=None if step.x_adv is None else kept(step.x_adv.float()),
        clean_pred=answers(step.logits_clean if attacked else step.logits),
        adv_pred=answers(step.logits) if attacked else None,
    )
