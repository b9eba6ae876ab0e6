"""Teachers from files: opened, checked against the images, frozen."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dgad_tk.answers.doubts import NONE, Classes, one_answer, other_order
from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.runs import weights_of
from dgad_tk.artifacts.weights import has_record, load_model
from dgad_tk.common import UserError, sha256_file
from dgad_tk.data import Dataset
from dgad_tk.data.augment import to_float
from dgad_tk.data.batches import fetch
from dgad_tk.models import Normalize, check_input
from dgad_tk.strangers.names import same_names
from dgad_tk.teachers.foreign import SUFFIXES, read_state_dicts
from dgad_tk.teachers.matching import Wanted, match_network

BETTER = 0.05
"""By how much of the images the other reading has to be better before it is worth a warning."""


def open_teacher(
    source: Path,
    dataset: Dataset,
    *,
    model: str = "",
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    on_message: Callable[[str], None] = lambda line: None,
) -> tuple[nn.Module, str]:
    """The teacher in a file or run folder, in eval mode with frozen weights on the CPU, and `name sha256` of it.

    Args:
        source: a run folder or weights file of `dgad train`, or a checkpoint of another project: safetensors, or what
            `torch.save` wrote, read as weights only.
        model: network of a foreign checkpoint; empty to tell it from the weights. A file of ours says it itself.
        mean, std: what a foreign teacher's images were normalised with, unless its file says so.
        on_message: told what else a foreign file holds, a line at a time.

    Raises:
        UserError: it cannot be read, is another network, or was made for other images or classes.
    """
    weights = weights_of(source)
    if weights.suffix not in SUFFIXES:
        raise UserError(
            f"cannot read '{weights}' as a teacher: expected {' or '.join(SUFFIXES)}",
            hint="a run folder or best.safetensors of `dgad train` can teach, and so can a PyTorch checkpoint",
        )
    if has_record(weights):
        teacher, record = load_model(weights)
        name = record.model
        check_record(record, dataset, given=mean + std)
    else:
        wanted = Wanted(model, dataset.shape[0], len(dataset.classes), mean, std)
        teacher, name = match_network(read_state_dicts(weights), wanted, on_message)
    check_input(teacher, f"the teacher {name}", dataset.shape, len(dataset.classes))
    return teacher.eval().requires_grad_(False), f"{name} {sha256_file(weights)}"


def check_record(record: Artifact, dataset: Dataset, *, given: Sequence[float] = ()) -> None:
    """See that a teacher with this record takes a dataset's images and means its classes.

    Args:
        given: --teacher-mean and --teacher-std.

    Raises:
        UserError: it was trained for others, or it normalises its images itself and `given` is not empty.
    """
    if given:
        raise UserError(
            "the teacher's file says itself how it normalises its images",
            hint="leave out --teacher-mean and --teacher-std",
        )
    if record.input_shape[0] != dataset.shape[0]:
        raise UserError(
            f"the teacher takes {record.input_shape[0]} channels, '{dataset.name}' has {dataset.shape[0]}",
            hint="train a teacher on this dataset: --teacher auto",
        )
    if not same_names(record.classes, dataset.classes):
        raise UserError(
            f"the teacher knows {len(record.classes)} classes ({', '.join(record.classes[:5])}, ...), "
            f"'{dataset.name}' has {len(dataset.classes)} ({', '.join(dataset.classes[:5])}, ...)",
            hint="train a teacher on this dataset: --teacher auto",
        )


@dataclass(frozen=True)
class TeacherCheck:
    """How well a teacher knows the images it is to teach on.

    Attributes:
        name: of its network.
        n: number of training images looked at.
        as_is: share of them that it gets right.
        other_reading: the same with the images normalised by their own mean and std, or, where the teacher normalises
            inside, without that.
        normalises: the teacher normalises inside.
        warnings: what to doubt; empty for a teacher to rely on.
    """

    name: str
    n: int
    as_is: float
    other_reading: float
    normalises: bool
    warnings: Sequence[str] = ()

    def describe(self) -> str:
        """One line of summary, without the warnings."""
        other = "without the teacher's normalisation" if self.normalises else "with the images normalised"
        return (
            f"teacher {self.name}: {self.as_is:.1%} of {self.n:,} training images right as they are, "
            f"{self.other_reading:.1%} {other}"
        )


def check_teacher(
    teacher: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device,
    name: str = "",
    limit: int = 1000,
    batch_size: int = 250,
) -> TeacherCheck:
    """Clean accuracy of a teacher on the first `limit` training images, in the split's order; draws nothing at random.

    Args:
        teacher: of `open_teacher`; moved to `device`.
        name: of its network, or what `open_teacher` returned.
        limit: at least 1.
    """
    teacher = teacher.to(device).eval()
    split = dataset.train.subset(min(limit, len(dataset.train)))
    inside = isinstance(getattr(teacher, "normalize", None), Normalize)
    # Over these images alone: over all of a large dataset it would take minutes.
    mean, std = replace(dataset, train=split).statistics()
    other = teacher.get_submodule("net") if inside else nn.Sequential(Normalize(mean, std), teacher).to(device)
    answers = np.full((2, len(split)), NONE)
    with torch.no_grad():
        for positions in np.array_split(np.arange(len(split)), math.ceil(len(split) / batch_size)):
            x = to_float(fetch(split, positions, device)[0])
            for reading, net in zip(answers, (teacher, other), strict=True):
                logits = net(x)
                predicted = torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), NONE)
                reading[positions] = predicted.cpu().numpy()
    as_is, other_reading = (answers == split.labels).mean(axis=1).tolist()
    found = TeacherCheck(name.partition(" ")[0], len(split), as_is, other_reading, inside)
    warnings = _doubts(found, len(dataset.classes), mean, std) + _doubts_of_classes(
        split.labels, answers[0], dataset.classes
    )
    return replace(found, warnings=warnings)


def _doubts(check: TeacherCheck, classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> list[str]:
    chance = 1 / classes
    # Twice what guessing gives, less than that where classes are few; never within its noise on so few images.
    noise = 3 * math.sqrt(chance * (1 - chance) / check.n)
    guessing = chance + max(noise, min(chance, (1 - chance) / 4))
    doubts = []
    if check.as_is < guessing:
        doubts.append(
            f"the teacher is right on {check.as_is:.1%} of {check.n:,} training images, "
            f"and guessing on {chance:.1%}: it may be made for other images, for classes in another order, "
            "or for another normalisation (--teacher-mean, --teacher-std)"
        )
    if check.other_reading >= max(guessing, check.as_is + BETTER):
        better = f"{check.other_reading:.1%} instead of {check.as_is:.1%} of {check.n:,} training images"
        near_mean, near_std = (",".join(f"{value:.4f}" for value in values) for values in (mean, std))
        doubts.append(
            f"the teacher gets {better} right without its normalisation: it was trained on plain images; "
            "leave out --teacher-mean and --teacher-std"
            if check.normalises
            else f"the teacher gets {better} right when they are normalised: it was trained on normalised images; "
            f"give the values of its training, about --teacher-mean {near_mean} --teacher-std {near_std}"
        )
    return doubts


def _doubts_of_classes(labels: Classes, answers: Classes, names: Sequence[str]) -> list[str]:
    """What an average hides: a teacher of this accuracy would teach some classes wrongly, all of the time."""
    doubts = []
    if missing := int((answers == NONE).sum()):
        doubts.append(f"the teacher answers {missing:,} of {len(labels):,} training images with NaN or infinity")
    if alone := one_answer(labels, answers, names):
        doubts.append(f"the teacher has nearly one answer for everything: {alone}")
    if order := other_order(labels, answers, names):
        doubts.append(f"the teacher seems to know the classes in another order: {order}")
    return doubts
