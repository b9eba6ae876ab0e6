"""AUGMENTS: what may happen to a training image. A new one is a function and a row here.

A whole batch is augmented on the device. The draws for an image do not depend on the rest of the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dgad_tk.common import UserError, lookup
from dgad_tk.data.augment.numbers import Uniforms, to_float
from dgad_tk.data.augment.pictures import colour_jitter, random_resized_crop
from dgad_tk.data.augment.shifts import augment, crop, flip
from dgad_tk.draws import Draws
from dgad_tk.strangers.number_text import NotANumberError, real

__all__ = ["AUGMENTS", "Augment", "Chosen", "augment", "augment_by", "chosen_augments", "to_float"]


@dataclass(frozen=True)
class Augment:
    """A row of AUGMENTS.

    Attributes:
        change: float32 images `(N, C, H, W)` in [0, 1], the amount and the random numbers to such images.
        amount: default of the one number that it takes.
        least: the lowest amount.
        most: the highest amount.
        description: one line, with what the amount is.
    """

    change: Callable[[Tensor, float, Uniforms], Tensor]
    amount: float
    least: float
    most: float
    description: str


AUGMENTS: dict[str, Augment] = {
    "crop": Augment(crop, 0.125, 0, 1, "cut out of the zero-padded image, which is padded by this share of its sides"),
    "flip": Augment(flip, 0.5, 0, 1, "mirror left to right with this probability"),
    "random-resized-crop": Augment(
        random_resized_crop, 0.08, 0.01, 1, "a part of at least this share of the area, brought to the image's size"
    ),
    "colour-jitter": Augment(
        colour_jitter, 0.4, 0, 1, "brightness, contrast and saturation by up to this share, hue by a quarter of it"
    ),
}

NONE = "none"
"""Alone in a list: images stay as they are."""

Chosen = tuple[tuple[str, float], ...]
"""Rows in their order, each with its amount."""


def chosen_augments(names: Sequence[str]) -> Chosen | None:
    """The rows behind `crop`, `flip` or, with an amount, `random-resized-crop:0.3`; None for an empty list.

    Raises:
        UserError: unknown row, a row that is named twice, or an amount out of its range.
    """
    if not names:
        return None
    if [name.strip() for name in names] == [NONE]:
        return ()
    found: dict[str, float] = {}
    for text in names:
        name, colon, amount = (part.strip() for part in text.partition(":"))
        if name == NONE:
            raise UserError(f"augment '{NONE}' leaves images as they are, and stands alone", hint="leave it out")
        row = lookup(AUGMENTS, name, "augmentation")
        if name in found:
            raise UserError(f"augment names '{name}' twice", hint="name it once, with its amount: crop:0.1")
        try:
            found[name] = real(amount) if colon else row.amount
        except NotANumberError as error:
            hint = error.hint or f"for example {name}:{row.amount}"
            raise UserError(f"augment '{name}' takes a number, got '{amount}'", hint=hint) from None
        if not row.least <= found[name] <= row.most:
            raise UserError(
                f"augment '{name}' takes {row.least} to {row.most}, got {amount}", hint=f"the default is {row.amount}"
            )
    return tuple(found.items())


def augment_by(chosen: Chosen, images: Tensor, *, draws: Draws, index: Tensor, epoch: int) -> Tensor:
    """Images changed by the chosen rows, one after the other; float32 in [0, 1].

    Args:
        images: uint8 `(N, C, H, W)` on any device.
        draws: of the run's seed.
        index: dataset indices, int64 `(N,)`; they choose the draws.
        epoch: from 0.
    """
    index, changed = index.to(images.device), to_float(images)
    for name, amount in chosen:
        changed = AUGMENTS[name].change(changed, amount, Uniforms(draws, name, index, epoch))
    return changed.contiguous()
