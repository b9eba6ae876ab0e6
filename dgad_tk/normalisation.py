"""The mean and std that a teacher from elsewhere wants its images normalised with: as given, or as its file says."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from dgad_tk.common import UserError

LEAST_STD = 1 / 2550
"""A tenth of a grey level. A channel divided by less hardly varies in any image, and every change in it is blown up."""

Values = tuple[float, ...]


def check_given(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """See that --teacher-mean and --teacher-std are of pixels, a value a channel.

    Raises:
        UserError: they are not.
    """
    for flag, values in (("--teacher-mean", mean), ("--teacher-std", std)):
        if bool(mean) != bool(std) or (values and len(values) != channels):
            example = ",".join(["0.5"] * channels)
            raise UserError(
                f"{flag} takes {channels} values here, one a channel, got {len(values)}",
                hint=f"for example {flag} {example}" if mean and std else "give both --teacher-mean and --teacher-std",
            )
        if any(not 0 <= value <= 1 for value in values):
            raise UserError(
                f"{flag} is of pixels in [0, 1], got {listed(values)}",
                hint="divide by 255 what is meant for grey levels up to 255",
            )
    if any(value < LEAST_STD for value in std):
        raise UserError(
            f"--teacher-std is of pixels that vary, got {listed(std)}",
            hint=f"a channel that hardly varies is best divided by a grey level, {1 / 255:.4f}, as long as the teacher "
            "was trained so",
        )


def own_normalisation(
    path: Path, tensors: Mapping[str, Tensor], roles: Mapping[str, str], channels: int, *, given: bool
) -> tuple[Values, Values]:
    """Mean and std that a file itself normalises with, a value a channel; twice empty where it does not.

    Args:
        roles: names in `tensors` of what it normalises with, to "mean" or "std".
        given: --teacher-mean and --teacher-std are.

    Raises:
        UserError: they contradict each other, are incomplete, for other images, or cannot be a normalisation.
    """
    found: dict[str, dict[Values, str]] = {"mean": {}, "std": {}}
    for name, role in roles.items():
        # As float32, in which a copy may be kept: 0.4914 is another number there.
        found[role].setdefault(tuple(tensors[name].float().double().flatten().tolist()), name)
    for role, values in found.items():
        if len(values) > 1:
            first, second, *_ = values.items()
            raise UserError(
                f"'{path}' holds two normalisations: the {role} {first[1]} is {listed(first[0])}, "
                f"{second[1]} is {listed(second[0])}",
                hint="save the state dict with the one that the network's images go through",
            )
    kinds = [role for role, values in found.items() if values]
    if not kinds:
        return (), ()
    if len(kinds) == 1:
        save = "save the state dict of the network alone"
        raise UserError(
            f"'{path}' holds a {kinds[0]} to normalise with, {next(iter(roles))}, but not both mean and std",
            hint=save if given else f"{save}, and give --teacher-mean and --teacher-std",
        )
    own = [next(iter(found[role])) for role in ("mean", "std")]
    what = f"'{path}' normalises by mean {listed(own[0])} and std {listed(own[1])}"
    mean, std = (values * channels if len(values) == 1 else values for values in own)
    if not len(mean) == len(std) == channels:
        raise UserError(
            f"{what}, expected {channels} values each, one a channel", hint="choose a teacher for such images"
        )
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        grey = max(mean) > 1 and max(*mean, *std) <= 255 and min(*mean, *std) > 0
        raise UserError(
            f"{what}, expected values of pixels in [0, 1], and every std above 0",
            hint="save the state dict without them; of grey levels up to 255 they would be --teacher-mean "
            f"{_divided(mean)} --teacher-std {_divided(std)}"
            if grey
            else "its normalisation broke down; take another checkpoint",
        )
    if min(std) < LEAST_STD:
        raise UserError(
            f"{what}: a std below a tenth of a grey level makes noise of its channel",
            hint="the file is broken, or made from a channel that is the same in all images; take another checkpoint",
        )
    return mean, std


def choose_normalisation(
    path: Path, own: tuple[Values, Values], given: tuple[Sequence[float], Sequence[float]]
) -> tuple[Sequence[float], Sequence[float]]:
    """The file's own mean and std, else those given.

    Raises:
        UserError: both are there and differ.
    """
    if not own[0]:
        return given
    if given[0] and not np.allclose(given, own, atol=1e-3):
        raise UserError(
            f"'{path}' normalises by its own mean {listed(own[0])} and std {listed(own[1])}, not by those given",
            hint="leave out --teacher-mean and --teacher-std",
        )
    return own


def listed(values: Sequence[float]) -> str:
    """Numbers for a message."""
    return ", ".join(f"{value:.4g}" for value in values)


def _divided(values: Sequence[float]) -> str:
    return ",".join(f"{value / 255:.4f}" for value in values)
