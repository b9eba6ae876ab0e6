"""What a training method is: one step from a batch to a loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from dgad_tk.config import ThreatModel
from dgad_tk.fold import folded
from dgad_tk.inner_max import Init, Noise, Objective, in_train_mode, inner_max, start_point

BatchNormMode = Literal["eval", "train"]

ObjectiveOn = Callable[[nn.Module], Objective]
"""Of a student: what its attack maximises."""


@dataclass(frozen=True)
class Batch:
    """One augmented mini-batch.

    Attributes:
        x: images `(N, C, H, W)` in [0, 1].
        y: labels, int64 `(N,)`.
        noise: draws of x's shape that belong to these images in this epoch.
        nominal_size: the configured batch size; the last batch of an epoch may hold fewer.
    """

    x: Tensor
    y: Tensor
    noise: Noise = field(repr=False)
    nominal_size: int


@dataclass(frozen=True)
class Step:
    """What a method made of a batch.

    Attributes:
        loss: the scalar to call backward on.
        terms: its parts before weighting, by the names of the paper, and shares worth watching. Detached scalars.
        x_adv: the adversarial batch, None for methods without one.
        logits: the student's on the images it is judged by (adversarial where there are any), for the progress line.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    x_adv: Tensor | None
    logits: Tensor


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of the rows of METHODS. Its fields are its hyper-parameters."""

    needs_teacher: ClassVar[bool] = False
    selected_by: ClassVar[Literal["robust", "clean"]] = "robust"
    """Accuracy on the selection split by which the best epoch is chosen."""

    @abstractmethod
    def step(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, threat: ThreatModel) -> Step:
        """Run the forwards of one training step in the released order, since BatchNorm statistics depend on it.

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

        `objective_on` may be handed a stand-in that computes the same: in eval mode the BatchNorms are folded.
        """
        start = start_point(batch.x, threat, self.init, batch.noise, clip=self.clip_start)
        if self.bn_in_attack == "eval":
            return inner_max(objective_on(folded(student)), batch.x, start, threat)
        with in_train_mode(student):
            return inner_max(objective_on(student), batch.x, start, threat)


def require(teacher: nn.Module | None) -> nn.Module:
    """The teacher of a method that cannot do without."""
    if teacher is None:
        raise ValueError("this method needs a teacher, got None")
    return teacher
