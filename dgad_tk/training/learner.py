"""The student and all that moves its weights: the optimizer, its learning rate, averages, adversarial perturbation."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import batchnorm, instancenorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from dgad_tk.config.moments import begun_at, epoch_of
from dgad_tk.config.optimizers import OPTIMIZERS
from dgad_tk.config.training import TrainConfig
from dgad_tk.distributed import world
from dgad_tk.models.trained import shared


def learning_rate(config: TrainConfig, at: float) -> float:
    """The rate at a moment of the run, in epochs from its beginning."""
    share = at / config.epochs
    if config.schedule == "cosine":
        rest = max(config.epochs - config.warmup_epochs, 1e-9)
        rate = config.lr * 0.5 * (1 + math.cos(math.pi * max(at - config.warmup_epochs, 0) / rest))
    elif config.schedule == "cyclic":
        rate = config.lr * min(share / 0.4, (1 - share) / 0.6)
    elif config.schedule == "piecewise":
        passed = sum(math.floor(at) >= epoch_of(milestone, config.epochs) for milestone in config.milestones)
        rate = config.lr * 0.1**passed
    else:
        rate = config.lr
    return rate * min(at / config.warmup_epochs, 1) if config.warmup_epochs else rate


def images_at_once(config: TrainConfig) -> int:
    """Number of images that go through a network at once in training, in each process; 0 for the whole batch."""
    return 0 if config.accumulate == 1 else math.ceil(config.batch_size / (config.accumulate * world().size))


def optimizer_of(config: TrainConfig, student: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a student's weights, in two groups if some of them are not to decay."""
    row = OPTIMIZERS[config.optimizer]
    groups: list[dict[str, Any]] = [{"params": list(student.parameters())}]
    if config.decay_weights_only:
        spared = {id(parameter) for parameter in norms_and_biases(student)}
        decayed = [parameter for parameter in student.parameters() if id(parameter) not in spared]
        others = [parameter for parameter in student.parameters() if id(parameter) in spared]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    more = {argument: getattr(config, key) for argument, key in row.takes.items()}
    made: torch.optim.Optimizer = getattr(torch.optim, row.torch_name)(
        [group for group in groups if group["params"]], lr=config.lr, weight_decay=config.weight_decay, **more
    )
    return made


def batch_norms(student: nn.Module) -> Iterator[batchnorm._BatchNorm]:
    """Every BatchNorm of a network."""
    return (module for module in student.modules() if isinstance(module, batchnorm._BatchNorm))


def late_statistics(student: nn.Module, steps: int) -> str | None:
    """A sentence if BatchNorm's running statistics move so slowly that after `steps` they hold much of their beginning.

    That is of networks whose momentum is below the usual 0.1. Some variances inside of a network are near 1/1000, so
    that a thousandth of the first one, which is 1, makes another network of it in eval mode.
    """
    slowest = min((module.momentum for module in batch_norms(student) if module.momentum is not None), default=1.0)
    left = (1 - slowest) ** steps
    if slowest >= 0.1 or left < 0.001:
        return None
    return (
        f"BatchNorm of this network takes {slowest:.2g} of each step into its running statistics: after these {steps} "
        f"steps they hold {left:.1%} of what they began with, and what is tested differs from what was trained; "
        "--set bn_momentum=0.1 takes more"
    )


def norms_and_biases(student: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of normalisations, whatever their shape, and all of at most one dimension, as biases are.

    An ONNX graph has its biases and slopes as `(1, C, 1, 1)` too, where they are in no module of their own.
    """
    for module in student.modules():
        norm, graph = isinstance(module, NORMS), isinstance(module, fx.GraphModule)
        for parameter in module.parameters(recurse=False):
            axes = sum(side > 1 for side in parameter.shape) if graph else parameter.ndim
            if norm or axes <= 1:
                yield parameter


NORMS = (batchnorm._NormBase, instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Learner:
    """A student, its optimizer, the average of its weights if the config asks for one, and the method's memory."""

    def __init__(self, config: TrainConfig, student: nn.Module) -> None:
        self.config, self.student = config, student
        for module in batch_norms(student) if config.bn_momentum is not None else ():
            module.momentum = config.bn_momentum
        self.shared = shared(student, images_at_once(config))
        self.optimizer = optimizer_of(config, student)
        self.memory: Mapping[str, Tensor] = {}
        self.averaged: AveragedModel | None = None
        if config.averaging != "none":
            ema = config.averaging == "ema"
            average = get_ema_multi_avg_fn(config.ema_decay) if ema else get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
            # BatchNorm's statistics are averaged too: those of a fresh pass over clean images would miss the
            # adversarial ones.
            self.averaged = AveragedModel(student, multi_avg_fn=_but_counts(average), use_buffers=True)

    @property
    def networks(self) -> list[nn.Module]:
        """The student and, if there is one, the average."""
        return [self.student] if self.averaged is None else [self.student, self.averaged]

    @property
    def best(self) -> nn.Module:
        """The network to select and save: the average, once it has begun."""
        if self.averaged is None or int(self.averaged.n_averaged) == 0:
            return self.student
        return self.averaged.module

    def begin_epoch(self) -> None:
        """Put the student into train mode; BatchNorm stays in eval mode if the config freezes it."""
        self.student.train()
        for module in batch_norms(self.student) if self.config.freeze_bn else ():
            module.eval()

    def learn(self, rate: float) -> None:
        """One step of the optimizer, once the gradients are there."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_grad)
        self.optimizer.step()
        if self.averaged is not None and self.config.averaging == "ema":
            self.averaged.update_parameters(self.student)

    def end_epoch(self, epoch: int) -> None:
        """Add the epoch's last weights to a plain average that has begun."""
        if self.averaged is None or self.config.averaging != "swa":
            return
        begun = begun_at(self.config.swa_start, self.config.epochs)
        if int(self.averaged.n_averaged) <= epoch - begun:  # else a resumed run has added them already
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
    """`average` for floating-point tensors; integers, which are BatchNorm's counts of batches, are copied."""

    def update(averaged: list[Tensor], current: list[Tensor], number: Tensor) -> None:
        if averaged[0].is_floating_point():
            average(averaged, current, number)
        else:
            for held, value in zip(averaged, current, strict=True):
                held.copy_(value)

    return update
