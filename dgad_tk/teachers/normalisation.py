"""The mean and std with which foreign weights normalise their images: given by the user or found in their file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from dgad_tk.common import UserError
from dgad_tk.teachers.wrappers import odd_kind

LEAST_STD = 1 / 2550
"""A tenth of a grey level. A smaller std belongs to a channel that hardly varies; dividing by it makes noise."""

Values = tuple[float, ...]

_MOST_CHANNELS = 64
_MEAN = {"mean", "means", "mu", "avg", "average"}
_STD = {"std", "stds", "sigma", "stdev", "stddev", "sd"}
_NO_NORMALISER = {"running", "inv", "inverse", "rec", "recip", "reciprocal", "log", "rstd", "denorm", "unnorm"}
_NO_NORMALISER |= {"denormalize", "unnormalize", "denormalise", "unnormalise", "denormalizer", "unnormalizer"}


@dataclass(frozen=True)
class Role:
    """What weights are opened for, in words.

    Attributes:
        noun: what they are.
        model, mean, std: flags that say their network and their normalisation.
        other: what to do if they are for other images.
    """

    noun: str
    model: str
    mean: str
    std: str
    other: str

    @property
    def both(self) -> str:
        return f"{self.mean} and {self.std}"


TEACHER = Role(
    "teacher",
    "--teacher-model",
    "--teacher-mean",
    "--teacher-std",
    "choose a teacher of this dataset, or --teacher auto to train one",
)
FIRST = Role(
    "student's first network",
    "--student",
    "--init-mean",
    "--init-std",
    "choose a file for such images, or leave --init out",
)


def normaliser_role(name: str, tensor: Tensor) -> str:
    """The role "mean" or "std" where name and shape say that a tensor normalises the input; else empty."""
    if odd_kind(tensor) or not tensor.is_floating_point() or not 1 <= tensor.numel() <= _MOST_CHANNELS:
        return ""
    if sum(size > 1 for size in tensor.shape) > 1 or _NO_NORMALISER & _words(name):
        return ""
    last = _words(name.rpartition(".")[2])
    return "" if bool(last & _MEAN) == bool(last & _STD) else "mean" if last & _MEAN else "std"


def check_given(mean: Sequence[float], std: Sequence[float], channels: int, role: Role = TEACHER) -> None:
    """Raise UserError unless --teacher-mean and --teacher-std are for pixels in [0, 1], one value per channel."""
    for flag, values in ((role.mean, mean), (role.std, std)):
        if bool(mean) != bool(std) or (values and len(values) != channels):
            example = ",".join(["0.5"] * channels)
            raise UserError(
                f"{flag} takes {channels} values here, one per channel, got {len(values)}",
                hint=f"for example {flag} {example}" if mean and std else f"give both {role.both}",
            )
        if any(not 0 <= value <= 1 for value in values):
            raise UserError(
                f"{flag} is of pixels in [0, 1], got {_listed(values)}",
                hint="divide by 255 what is meant for grey levels up to 255",
            )
    if any(value < LEAST_STD for value in std):
        raise UserError(
            f"{role.std} is of pixels that vary, got {_listed(std)}",
            hint=f"a channel that hardly varies is best divided by a grey level, {1 / 255:.4f}, as long as the "
            f"{role.noun} was trained so",
        )


def normalisation_of(
    path: Path, tensors: Mapping[str, Tensor], given: tuple[Values, Values], channels: int, role: Role = TEACHER
) -> tuple[Values, Values]:
    """Mean and std of the file, one value per channel; else those given.

    Args:
        path: of the file, for messages.
        tensors: of the file, those with a `normaliser_role`.
        given: those that the user gave, both empty for none.

    Raises:
        UserError: those of the file are several or incomplete, contradict those given, are for another number of
            channels, or cannot be a normalisation.
    """
    if not tensors:
        return given
    own = _own(path, tensors, given, role)
    what = f"'{path}' normalises by mean {_listed(own[0])} and std {_listed(own[1])}"
    mean, std = (values * channels if len(values) == 1 else values for values in own)
    if not len(mean) == len(std) == channels:
        raise UserError(f"{what}, expected {channels} values each, one per channel", hint=role.other)
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        grey = max(mean) > 1 and max(*mean, *std) <= 255 and min(*mean, *std) > 0
        raise UserError(
            f"{what}, expected values of pixels in [0, 1], and every std above 0",
            hint=f"save the state dict without them; of grey levels up to 255 they would be {role.mean} "
            f"{_divided(mean)} {role.std} {_divided(std)}"
            if grey
            else "its normalisation broke down; take another checkpoint",
        )
    if min(std) < LEAST_STD:
        raise UserError(
            f"{what}: a std below a tenth of a grey level makes noise of its channel",
            hint="the file is broken, or made from a channel that is the same in all images; take another checkpoint",
        )
    if given[0] and not np.allclose(given, (mean, std), atol=1e-3):
        raise UserError(
            f"'{path}' normalises by its own mean {_listed(mean)} and std {_listed(std)}, not by those given",
            hint=f"leave out {role.both}",
        )
    return mean, std


def _own(path: Path, tensors: Mapping[str, Tensor], given: tuple[Values, Values], role: Role) -> list[Values]:
    """The one mean and the one std among a file's tensors."""
    found: dict[str, dict[Values, str]] = {"mean": {}, "std": {}}
    for name, tensor in tensors.items():
        # As float32: one copy may be float32 and the other float64, and 0.4914 differs between them.
        values = tuple(tensor.float().double().flatten().tolist())
        found[normaliser_role(name, tensor)].setdefault(values, name)
    for part, named in found.items():
        if len(named) > 1:
            first, second, *_ = named.items()
            raise UserError(
                f"'{path}' holds two normalisations: the {part} {first[1]} is {_listed(first[0])}, "
                f"{second[1]} is {_listed(second[0])}",
                hint="save the state dict with the one that the network's images go through",
            )
    if len(roles := [role for role, named in found.items() if named]) == 1:
        save = "save the state dict of the network alone"
        raise UserError(
            f"'{path}' holds a {roles[0]} to normalise with, {next(iter(tensors))}, but not both mean and std",
            hint=save if given[0] else f"{save}, and give {role.both}",
        )
    return [next(iter(named)) for named in found.values()]


def _words(name: str) -> set[str]:
    """The words of a name in lower case, such as {"pixel", "std"} of `pixelStd` and of `pixel_std`."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _divided(values: Sequence[float]) -> str:
    return ",".join(f"{value / 255:.4f}" for value in values)
