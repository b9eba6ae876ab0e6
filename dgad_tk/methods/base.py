"""What a training method is: one step from a batch to a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dgad_tk.ascent.balls import Noise
from dgad_tk.ascent.folded import Inner
from dgad_tk.ascent.inner_max import Init, Objective, inner_max, start_point
from dgad_tk.ascent.losses import cross_entropy, kl
from dgad_tk.config.threat import ThreatModel
from dgad_tk.models.trained import Trained, bare, kept_statistics, parts_of

BatchNormMode = Literal["eval", "train", "batch"]
"""What BatchNorm normalises with. `eval`: the running statistics. `train`: those of the batch, which also update the
running ones. `batch`: those of the batch, and the running ones stay."""

KlReduction = Literal["batchmean", "elementmean"]
"""`batchmean` sums over classes and averages over the batch; `elementmean` averages over both, which is 1/K of it."""

ObjectiveOn = Callable[[nn.Module, slice], Objective]
"""From the student under attack, and the rows of the batch that are attacked now, to what the attack maximises.

The objective is given the images of these rows; what it knows of each image beside that has to be of these rows too."""


@dataclass(frozen=True)
class Batch:
    """One augmented mini-batch.

    If several processes share a batch, this is one process's part of it. Methods reduce by `mean` and `mean_where`,
    which see all parts. So every loss is that of the whole batch, and no method knows how many processes there are.

    Attributes:
        x: images `(N, C, H, W)` in [0, 1].
        y: labels, int64 `(N,)`.
        noise: draws of x's shape that belong to these images in this epoch.
        nominal_size: the configured batch size; the last batch of an epoch may hold fewer images.
        epoch: the current one, from 0.
        epochs: number of epochs of the run.
        x_adv: adversarial images to use; None lets the method make them.
        n: number of images of the whole batch.
        across: sums a tensor over the processes, differentiably.
        inner: how the networks are run inside the attack.
        most: number of images that are attacked at once; 0 for all.
        least: smallest value of a scalar tensor over the processes.
        memory: what the method's last step left for this one (`Step.memory`).
        temperatures: by which the teacher's logits are divided where they are a target on x', and where on x, `(N,)`
            each; None leaves them as they are.
    """

    x: Tensor
    y: Tensor
    noise: Noise = field(repr=False)
    nominal_size: int
    epoch: int = 0
    epochs: int = 1
    x_adv: Tensor | None = None
    n: int = 0
    across: Callable[[Tensor], Tensor] = field(default=lambda value: value, repr=False)
    inner: Inner = field(default_factory=Inner)
    most: int = 0
    least: Callable[[Tensor], Tensor] = field(default=lambda value: value, repr=False)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    temperatures: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", self.n or len(self.x))

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `(N,)` over the whole batch, a scalar."""
        return self.across(values.sum()) / self.n

    def mean_where(self, values: Tensor, where: Tensor) -> Tensor:
        """Mean over the chosen images of the whole batch; 0 where none is chosen."""
        chosen: Tensor = torch.where(where, values, 0)
        return self.across(chosen.sum()) / self.across(where.sum()).clamp(min=1)

    def for_adv(self, teacher_logits: Tensor) -> Tensor:
        """The teacher's logits `(N, K)` as the target of the student's answers to x'."""
        return teacher_logits if self.temperatures is None else teacher_logits / self.temperatures[0][:, None]

    def for_clean(self, teacher_logits: Tensor) -> Tensor:
        """The teacher's logits `(N, K)` as the target of the student's answers to x."""
        return teacher_logits if self.temperatures is None else teacher_logits / self.temperatures[1][:, None]


@dataclass(frozen=True)
class Step:
    """What a method computed for a batch.

    Attributes:
        loss: the scalar to call backward on.
        terms: the loss's parts before weighting, by the paper's names, and shares worth watching; detached scalars.
        x_adv: the adversarial batch, None for methods without one.
        logits: the student's on the adversarial images, or on the clean ones if there are none; with their graph.
        logits_clean: those on the clean images beside them, where the step has them anyway, without their graph.
        distilled: what each image adds to the loss by the teacher's answer that S(x') shall give, `(N,)`, with its
            graph and all weights: its mean over the batch is a part of the loss. Add-ons weigh it.
        teacher_adv: the teacher's logits on x', `(N, K)`, where the step has asked for them.
        teacher_clean: those on x, likewise; as they are, before temperatures and label swapping.
        memory: what the next step shall find in `Batch.memory`.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    x_adv: Tensor | None
    logits: Tensor
    logits_clean: Tensor | None = None
    distilled: Tensor | None = None
    teacher_adv: Tensor | None = None
    teacher_clean: Tensor | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.logits_clean is not None:
            object.__setattr__(self, "logits_clean", self.logits_clean.detach())
        object.__setattr__(self, "terms", {name: term.detach() for name, term in self.terms.items()})


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of the rows of METHODS. Its fields are its hyper-parameters."""

    needs_teacher: ClassVar[bool] = False
    selected_by: ClassVar[Literal["robust", "clean"]] = "robust"
    """Which accuracy on the selection split chooses the best epoch."""

    @abstractmethod
    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        """One training step. Its forwards run in the released order, since BatchNorm's statistics depend on it.

        Args:
            student: in train mode; its running statistics move, its weights do not.
            teacher: in eval mode with frozen weights; None for methods with `needs_teacher` False.
        """


@dataclass(frozen=True, kw_only=True)
class AdversarialMethod(Method):
    """A method that attacks the student first.

    Attributes:
        init: start of the attack.
        clip_start: cut the start to [0, 1] before the first gradient.
        bn_in_attack: BatchNorm mode of the student inside the attack.
    """

    init: Init = "gauss"
    clip_start: bool = False
    bn_in_attack: BatchNormMode = "eval"

    def attack(self, student: nn.Module, batch: Batch, threat: ThreatModel, objective_on: ObjectiveOn) -> Tensor:
        """The adversarial batch `(N, C, H, W)` that maximises the objective on the student.

        In eval mode, `objective_on` gets a copy of the student with its BatchNorms folded, which computes the same.
        """
        if batch.x_adv is not None:
            return batch.x_adv
        start = start_point(batch.x, threat, self.init, batch.noise, clip=self.clip_start)
        student = bare(student)
        kept = kept_statistics(student) if self.bn_in_attack == "batch" else nullcontext()
        with batch.inner.context(batch.x.device), kept:
            net = batch.inner.view(student) if self.bn_in_attack == "eval" else Trained(student)
            found = [
                inner_max(objective_on(net, rows), batch.x[rows], start[rows], threat)
                for rows in parts_of(len(batch.x), batch.most)
            ]
        return found[0] if len(found) == 1 else torch.cat(found)


def label_loss(y: Tensor) -> ObjectiveOn:
    """CE(s(x'), y) for labels `(N,)` (Madry et al., ICLR 2018, eq. 2.1)."""
    return lambda net, rows: lambda images: cross_entropy(net(images), y[rows])


@dataclass(frozen=True, kw_only=True)
class Distillation(AdversarialMethod):
    """A method with a teacher.

    Attributes:
        kl_reduction: `elementmean` is what some released codes compute; it weakens the loss against weight decay.
    """

    needs_teacher: ClassVar[bool] = True

    kl_reduction: KlReduction = "batchmean"

    def kl(self, p_logits: Tensor, q_logits: Tensor, temperature: float = 1.0) -> Tensor:
        """KL(P‖Q) per sample under `kl_reduction`, `(N,)`; its mean over the batch is the term."""
        return self.reduced(kl(p_logits, q_logits, temperature), q_logits.shape[1])

    def reduced(self, divergence: Tensor, classes: int) -> Tensor:
        """A divergence per sample, `(N,)`, under `kl_reduction`."""
        return divergence / classes if self.kl_reduction == "elementmean" else divergence


@dataclass(frozen=True, kw_only=True)
class AddOn(Method):
    """What is added to a method that distils and attacks.

    Attributes:
        base: the method, perhaps with other add-ons.
    """

    needs_teacher: ClassVar[bool] = True

    base: Method


@torch.no_grad()
def answer_on_adv(step: Step, teacher: nn.Module) -> Tensor:
    """The teacher's logits on x', `(N, K)`; asked for only if the step has not done so."""
    assert step.x_adv is not None, "`find_method` lets no method through that does not attack"
    logits: Tensor = step.teacher_adv if step.teacher_adv is not None else teacher(step.x_adv)
    return logits


@torch.no_grad()
def answer_on_clean(step: Step, teacher: nn.Module, batch: Batch) -> Tensor:
    """The teacher's logits on x, `(N, K)`; asked for only if the step has not done so."""
    logits: Tensor = step.teacher_clean if step.teacher_clean is not None else teacher(batch.x)
    return logits


def require(teacher: nn.Module | None) -> nn.Module:
    """The teacher of a method that needs one."""
    if teacher is None:
        raise ValueError("this method needs a teacher, got None")
    return teacher
