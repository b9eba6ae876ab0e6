"""What a torch module gives for images, brought to rows `(N, K)`: of several outputs one, axes of size 1 left out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgad_tk.artifacts.one_number import (
    LOGIT,
    PROBABILITY,
    TwoLogits,
    log_pair,
    logit_of_probability,
    probability_of_logits,
)

LINEAR = frozenset(("addmm", "batch_norm", "conv2d", "convolution", "linear", "matmul", "mm"))
"""Last operators whose answers may be any number."""
KEEPING = frozenset(("alias", "clone", "contiguous", "detach", "flatten", "reshape", "squeeze", "to", "unsqueeze"))
KEEPING |= {"view", "_to_copy", "_unsafe_view"}
"""Operators that may follow the last one that computes, and keep its numbers."""
TRIALS = 16
"""Images that an answer is told by, where nothing else tells a probability from a logit."""


def trial_images(shape: tuple[int, int, int]) -> Tensor:
    """Noise of rising brightness, and plain colours from black to white: `(TRIALS, C, H, W)` in [0, 1].

    Noise alone has the same mean in every image, so that its answers are all of one class.
    """
    generator, half = torch.Generator().manual_seed(0), TRIALS // 2
    noise = torch.rand(half, *shape, generator=generator) * torch.linspace(0.25, 1, half).reshape(-1, 1, 1, 1)
    colours = torch.rand(half, shape[0], 1, 1, generator=generator)
    colours[0], colours[-1] = 0.0, 1.0
    return torch.cat([noise, colours.expand(half, *shape)])


@dataclass(frozen=True)
class Last:
    """The last operator of a module that computes.

    Attributes:
        operator: its name in torch, such as "sigmoid"; empty if it is unknown.
        before: makes a module that gives what a final Sigmoid is given; None if there is none.
    """

    operator: str = ""
    before: Callable[[], nn.Module] | None = None


class Rows(nn.Module):
    """The answers of a module as rows.

    Args:
        place: of the answer among several, in a tuple or by name; None for the only one.
    """

    def __init__(self, net: nn.Module, place: int | str | None) -> None:
        super().__init__()
        self.net, self.place = net, place

    def forward(self, x: Tensor) -> Tensor:
        given = self.net(x)
        rows: Tensor = given if self.place is None else given[self.place]
        return rows.reshape(len(x), -1)


class Probabilities(nn.Module):
    """The logarithms `(N, 2)` of the probabilities of class 0 and class 1.

    Args:
        net: gives the probability of class 1 for each image.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return log_pair(self.net(x).reshape(-1).float())


def place_of_rows(given: Any, images: int) -> tuple[int | str | None, Tensor] | None:
    """Which of a module's answers are rows, those of K >= 2 numbers before those of one; None if there is none."""
    if isinstance(given, Tensor):
        places: list[tuple[int | str | None, Any]] = [(None, given)]
    elif isinstance(given, Mapping):
        places = list(given.items())
    else:
        places = list(enumerate(given)) if isinstance(given, tuple | list) else []
    fitting = [(place, each) for place, each in places if isinstance(each, Tensor) and _are_rows(each, images)]
    return max(fitting, key=lambda each: each[1].numel() > images, default=None)  # of several the first


def _are_rows(answer: Tensor, images: int) -> bool:
    if not answer.is_floating_point() or answer.dim() == 0 or len(answer) != images:
        return False
    return answer.numel() == images * max(answer.shape[1:], default=1)


@dataclass(frozen=True)
class Reading:
    """How a module is searched and judged.

    Attributes:
        judged: gives logits, or logarithms of probabilities, `(N, K)`.
        searched: gives logits `(N, K)`.
        finish: from logits to what `judged` gives; None where both are the same.
        one_number: the module gives one number per image.
        notes: on this reading.
    """

    judged: nn.Module
    searched: nn.Module
    finish: Callable[[Tensor], Tensor] | None = None
    one_number: bool = False
    notes: tuple[str, ...] = ()


def read_module(
    net: nn.Module, wrap: Callable[[nn.Module], nn.Module], images: Tensor, tell_last: Callable[[], Last]
) -> Reading:
    """How the answers of a module are read.

    Args:
        net: in eval mode.
        wrap: puts what is done to images before a module.
        images: some to try it on, `(N, C, H, W)` in [0, 1], at least 2.
        tell_last: tells the last operator of `net`; asked only where there is one number per image.
    """
    whole = wrap(net)
    with torch.no_grad():
        given = whole(images)
    found = place_of_rows(given, len(images))
    if found is None:
        return Reading(whole, whole)
    place, rows = found
    notes: tuple[str, ...] = ()
    if place is not None:
        whole = Rows(whole, place)
        notes = (f"the logits are output {place} of {len(given)}",)
    if rows.numel() > len(images):
        whole = whole if rows.dim() == 2 or place is not None else Rows(whole, None)
        return Reading(whole, whole, notes=notes)
    last = tell_last()
    if last.operator == "sigmoid":
        probability, told = True, ""
    elif last.operator in LINEAR:
        probability, told = False, ""
    else:
        probability = bool(((rows >= 0) & (rows <= 1)).all())
        told = f", as its answers to {len(images)} trial images {'lie' if probability else 'do not all lie'} in 0-1"
    notes = (*notes, f"{PROBABILITY if probability else LOGIT}{told}")
    if not probability:
        searched = TwoLogits(whole)
        return Reading(searched, searched, None, True, notes)
    before = _before(wrap, images, rows, last) if place is None else None
    searched = TwoLogits(whole, logit_of_probability) if before is None else TwoLogits(before)
    remark = "the logarithms of that number, which vanish where it is 0 or 1"
    remark = remark if before is None else "the logit before the final Sigmoid, verdicts from the file's own answer"
    return Reading(
        Probabilities(whole),
        searched,
        lambda logits: log_pair(probability_of_logits(logits)),
        True,
        (*notes, f"gradients come from {remark}"),
    )


def _before(wrap: Callable[[nn.Module], nn.Module], images: Tensor, rows: Tensor, last: Last) -> nn.Module | None:
    """What gives the logit of a final Sigmoid; None if there is none, or if it does not give that."""
    if last.before is None:
        return None
    net = wrap(last.before())
    with torch.no_grad():
        logits = net(images)
    same = logits.numel() == rows.numel() and torch.allclose(
        logits.reshape(-1).float().sigmoid(), rows.reshape(-1).float(), atol=1e-4
    )
    return net if same else None
