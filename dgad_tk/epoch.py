"""One pass over the training images, and what it tells whoever watches."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dgad_tk.batches import batch_positions, draw_noise, fetch, learning_rate
from dgad_tk.common import UserError
from dgad_tk.config import TrainConfig
from dgad_tk.data import Augmentation, Split
from dgad_tk.data.augment import augment
from dgad_tk.draws import Draws
from dgad_tk.methods import Batch, Method


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


@dataclass
class Epoch:
    """One pass over the training images."""

    config: TrainConfig
    method: Method
    student: nn.Module
    teacher: nn.Module | None
    optimizer: torch.optim.Optimizer
    split: Split
    augmentation: Augmentation
    draws: Draws
    device: torch.device
    role: str
    on_progress: OnProgress | None

    def run(self, epoch: int) -> dict[str, float]:
        """Train for one epoch; mean of each loss term and the accuracy on what was trained on."""
        config = self.config
        batches = list(
            batch_positions(self.draws.permutation("order", len(self.split), epoch=epoch), config.batch_size)
        )
        self.student.train()
        totals: dict[str, float] = {}
        seen, begun = 0, time.perf_counter()
        for number, positions in enumerate(batches):
            rate = learning_rate(config, epoch, (epoch + number / len(batches)) / config.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            found = self._step(positions, epoch)
            if not math.isfinite(found["loss"]):
                raise UserError(
                    f"{self.role}: the loss became {found['loss']} in epoch {epoch + 1}, step {number + 1}",
                    hint="lower the learning rate: --set lr=0.01",
                )
            seen += len(positions)
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value * len(positions)
            means = {name: total / seen for name, total in totals.items()}
            pace = seen / (time.perf_counter() - begun)
            self.progress = Progress(self.role, epoch, config.epochs, number + 1, len(batches), means, pace)
            if self.on_progress:
                self.on_progress(self.progress)
        return {"lr": rate, **means, "samples_per_second": round(pace, 1)}

    def _step(self, positions: NDArray[np.int64], epoch: int) -> dict[str, float]:
        images, labels, index = fetch(self.split, positions, self.device)
        x = augment(images, augmentation=self.augmentation, draws=self.draws, index=index, epoch=epoch)
        noise = partial(draw_noise, self.draws, "attack", x.shape[1:], index, epoch=epoch)
        with autocast(self.config, self.device):
            step = self.method.step(
                self.student,
                self.teacher,
                Batch(x, labels, noise, self.config.batch_size),
                self.config.attack,
            )
        self.optimizer.zero_grad(set_to_none=True)
        step.loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        accuracy = (step.logits.argmax(dim=1) == labels).float().mean()
        names = ["loss", "accuracy", *step.terms]
        values = torch.stack([step.loss.detach(), accuracy, *step.terms.values()]).tolist()  # one wait for the device
        return dict(zip(names, values, strict=True))


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where the config asks for it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")
