"""Opens a teacher from a file, frozen, and checks whether it knows the images."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dgad_tk.answers.doubts import NONE, Classes, one_answer, other_order
from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.runs import weights_of
from dgad_tk.artifacts.weights import has_record, load_model, read_weights
from dgad_tk.common import UserError, sha256_file
from dgad_tk.data import Dataset
from dgad_tk.data.augment import to_float
from dgad_tk.data.batches import on_device
from dgad_tk.data.images.request import GREY, MODES, RGB
from dgad_tk.models import Normalize, check_input
from dgad_tk.models.own import names_code
from dgad_tk.strangers.names import same_names
from dgad_tk.teachers.foreign import SUFFIXES, read_state_dicts
from dgad_tk.teachers.matching import Wanted, match_network
from dgad_tk.teachers.normalisation import TEACHER, Role

BETTER = 0.05
"""Share of the images by which the other normalisation has to be better before a warning is given."""
LOOKED_AT, BATCH_SIZE = 1000, 250
"""Images that the check of a teacher uses, in all and at a time."""


def open_teacher(
    source: Path,
    dataset: Dataset,
    *,
    model: str = "",
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    trust: bool = False,
    on_message: Callable[[str], None] = lambda line: None,
) -> tuple[nn.Module, str]:
    """The teacher in a file or run folder, in eval mode with frozen weights on the CPU, and its `name sha256`.

    Args:
        source: a run folder or weights file of `dgad train`, or another project's checkpoint (safetensors or
            `torch.save`), which is read without running anything.
        model: network of a foreign checkpoint; empty to recognise it by its weights. Of a run with a user's own
            network, where its source is now.
        mean, std: normalisation of a foreign teacher, unless its file holds one.
        trust: run the source code that the record of a user's own network names.
        on_message: called with one line for each other thing that a foreign file holds.

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
        moved = model if names_code(model) and names_code(read_weights(weights)[1].model) else None
        teacher, record = load_model(weights, trust=trust, network=moved, on_message=on_message)
        name = record.model
        check_record(record, dataset, given=mean + std)
    else:
        wanted = Wanted(model, dataset.shape[0], len(dataset.classes), mean, std)
        teacher, name = match_network(read_state_dicts(weights), wanted, on_message)
    check_input(teacher, f"the teacher {name}", dataset.shape, len(dataset.classes))
    return teacher.eval().requires_grad_(False), f"{name} {sha256_file(weights)}"


def channels_of(source: Path) -> int | None:
    """The channels of the images that weights are for: those of a record, else GREY or RGB; None if they do not tell.

    Args:
        source: as for `open_teacher`.

    Raises:
        UserError: it cannot be read.
    """
    weights = weights_of(source)
    if has_record(weights):
        return read_weights(weights)[1].input_shape[0]
    if weights.suffix not in SUFFIXES:
        return None
    # Of convolutions, and of a mean or a std per channel. Depthwise ones have kernels of one channel in any network,
    # and a safetensors file has its tensors in the order of their names.
    kernels = {int(tensor.shape[1]) for tensor in read_state_dicts(weights)[0].tensors.values() if tensor.dim() == 4}
    return next((channels for channels in (RGB, GREY) if channels in kernels), None)


def check_record(record: Artifact, dataset: Dataset, *, given: Sequence[float] = ()) -> None:
    """Raise UserError where a teacher's record does not fit the dataset's channels and classes.

    These teachers normalise inside, so --teacher-mean and --teacher-std (`given`) must be empty.
    """
    if given:
        raise UserError(
            "the teacher's file says itself how it normalises its images",
            hint="leave out --teacher-mean and --teacher-std",
        )
    if record.input_shape[0] != dataset.shape[0]:
        raise UserError(
            f"the teacher takes {record.input_shape[0]} channels, '{dataset.name}' has {dataset.shape[0]}",
            hint=f"--set channels={record.input_shape[0]} reads the folder so"
            if dataset.spec.image_size and record.input_shape[0] in MODES
            else "train a teacher on this dataset: --teacher auto",
        )
    if not same_names(record.classes, dataset.classes):
        raise UserError(
            f"the teacher knows {len(record.classes)} classes ({', '.join(record.classes[:5])}, ...), "
            f"'{dataset.name}' has {len(dataset.classes)} ({', '.join(dataset.classes[:5])}, ...)",
            hint="train a teacher on this dataset: --teacher auto",
        )


@dataclass(frozen=True)
class TeacherCheck:
    """How well a teacher knows the images that it will teach on.

    Attributes:
        name: of its network.
        n: number of training images that it answered.
        as_is: share of them that it gets right.
        other_reading: the same share with the images normalised by their own mean and std or, where the teacher
            normalises inside, without that.
        normalises: the teacher normalises inside.
        warnings: what to doubt; empty for a teacher to rely on.
        noun: what it is: a teacher, or the network that a student starts from.
    """

    name: str
    n: int
    as_is: float
    other_reading: float
    normalises: bool
    warnings: list[str]
    noun: str = "teacher"

    def describe(self) -> str:
        """One line of summary, without the warnings."""
        other = f"without the {self.noun}'s normalisation" if self.normalises else "with the images normalised"
        return (
            f"{self.noun} {self.name}: {self.as_is:.1%} of {self.n:,} training images right as they are, "
            f"{self.other_reading:.1%} {other}"
        )


def check_teacher(
    teacher: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device,
    name: str = "",
    limit: int = LOOKED_AT,
    role: Role = TEACHER,
) -> TeacherCheck:
    """Let a teacher answer the first `limit` training images, as they are and with the other normalisation.

    Args:
        teacher: of `open_teacher`; moved to `device`.
        name: of its network, or what `open_teacher` returned.
        role: what it is, in words.
    """
    teacher = teacher.to(device).eval()
    split = dataset.train.subset(limit)
    inside = isinstance(getattr(teacher, "normalize", None), Normalize)
    # Over these images alone: over all of a large dataset it would take minutes.
    mean, std = replace(dataset, train=split).statistics()
    other = teacher.get_submodule("net") if inside else nn.Sequential(Normalize(mean, std), teacher).to(device)
    answers = np.full((2, len(split)), NONE)
    with torch.no_grad():
        for positions in np.array_split(np.arange(len(split)), math.ceil(len(split) / split.at_once(BATCH_SIZE))):
            x = to_float(on_device(split, positions, device)[0])
            for row, net in zip(answers, (teacher, other), strict=True):
                logits = net(x)
                predicted = torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), NONE)
                row[positions] = predicted.cpu().numpy()
    as_is, otherwise = (answers == split.labels).mean(axis=1).tolist()
    images = f"{len(split):,} training images"
    doubts = []
    chance = 1 / len(dataset.classes)
    # Twice what guessing gives, less than that where classes are few; never within its noise on so few images.
    noise = 3 * math.sqrt(chance * (1 - chance) / len(split))
    guessing = chance + max(noise, min(chance, (1 - chance) / 4))
    if as_is < guessing:
        doubts.append(
            f"the {role.noun} is right on {as_is:.1%} of {images}, and guessing on {chance:.1%}: it may be made for "
            f"other images, for classes in another order, or for another normalisation ({role.mean}, {role.std})"
        )
    if otherwise >= max(guessing, as_is + BETTER):
        better = f"{otherwise:.1%} instead of {as_is:.1%} of {images}"
        near_mean, near_std = (",".join(f"{value:.4f}" for value in values) for values in (mean, std))
        doubts.append(
            f"the {role.noun} gets {better} right without its normalisation: it was trained on plain images; "
            f"leave out {role.both}"
            if inside
            else f"the {role.noun} gets {better} right when they are normalised: it was trained on normalised images; "
            f"give the values of its training, about {role.mean} {near_mean} {role.std} {near_std}"
        )
    doubts += _doubts_of_classes(split.labels, answers[0], dataset.classes, role.noun)
    name = re.sub(r" [0-9a-f]{8,64}$", "", name)  # a path in it may hold spaces too
    return TeacherCheck(name, len(split), as_is, otherwise, inside, doubts, role.noun)


def _doubts_of_classes(labels: Classes, answers: Classes, names: Sequence[str], noun: str) -> list[str]:
    """Doubts that an accuracy does not show, such as two classes that have changed places."""
    doubts = []
    if missing := int((answers == NONE).sum()):
        doubts.append(f"the {noun} answers {missing:,} of {len(labels):,} training images with NaN or infinity")
    if alone := one_answer(labels, answers, names):
        doubts.append(f"the {noun} has nearly one answer for everything: {alone}")
    if order := other_order(labels, answers, names):
        doubts.append(
            f"the {noun} seems to know the classes in another order: {order}; class folders are sorted as text, "
            "so names that sort in its order put that right"
        )
    return doubts
