"""CHOICES: how much to ask of an evaluation, what each answer supports, and what it does not see."""

from collections.abc import Sequence
from dataclasses import dataclass

from evaluators.attacks import ATTACKS
from evaluators.plan.suites import SUITES


@dataclass(frozen=True)
class Choice:
    """A question that may be asked.

    Attributes:
        ask: the flags of `dgad attack` that ask it.
        attacks: that it runs.
        says: what its answer supports.
        blind: what it does not see.
    """

    ask: tuple[str, str]
    attacks: tuple[str, ...]
    says: str
    blind: str


CHOICES: dict[str, Choice] = {
    "quick": Choice(
        ask=("--suite", "quick"),
        attacks=SUITES["quick"],
        says="an upper bound close to AutoAttack's (on nine files that docs/measurements.md compares, 4,499 of 4,500 "
        "images alike): for choosing among models, for CI, for a first look. It is not AutoAttack's figure",
        blind="weakness behind masked gradients, unless its alarm (Square on a tenth of the images left) goes off",
    ),
    "standard": Choice(
        ask=("--attack", "autoattack"),
        attacks=("autoattack",),
        says="the figure that papers and RobustBench compare by",
        blind="weakness behind roundings and thresholds (INT8 among them), and images that only another model's "
        "gradients find",
    ),
    "max": Choice(
        ask=("--attack", "autoattack-max"),
        attacks=("autoattack-max",),
        says="AutoAttack's figure or a lower one: the bound to publish for INT8 files and for defences",
        blind="what no sibling shows: give it models of the same task by --sibling, the fp32 file for an INT8 one",
    ),
}
"""From the cheapest to the strongest."""

WIDE = 0.05
"""Half of an interval; a wider one says too little to be worth a stronger attack."""


def recommended(images: Sequence[int], half_widths: Sequence[float], most: int) -> int | None:
    """Which choice to take, from how many images each can be asked about in the time; None for none of them.

    The strongest that sees all `most` images; else the strongest whose interval is not WIDE; else the one that sees
    most images.

    Args:
        images: of each choice, from the cheapest to the strongest; 0 where not even the first few fit.
        half_widths: half of the interval at so many images.
    """
    places = range(len(images))
    whole = [at for at in places if images[at] >= most]
    sure = [at for at in places if images[at] and half_widths[at] <= WIDE]
    any_ = sorted((at for at in places if images[at]), key=lambda at: images[at])
    return next(iter(reversed(whole)), next(iter(reversed(sure)), next(iter(reversed(any_)), None)))


def choices_in(norm: str, classes: int) -> dict[str, Choice]:
    """The choices whose attacks exist in a norm, for so many classes."""
    return {
        name: choice
        for name, choice in CHOICES.items()
        if all(norm in ATTACKS[each].norms and classes >= ATTACKS[each].fewest_classes for each in choice.attacks)
    }
