"""How far an evaluation is to be believed, in three words, and what a check says."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["high", "warn", "unreliable"]
ORDER: tuple[Verdict, ...] = ("high", "warn", "unreliable")
MUCH = 0.1
"""Above this share of the images it is no oddity of a few: the model hides something, or something is wrong."""


@dataclass(frozen=True)
class Item:
    """One check: `high` is nothing found."""

    name: str
    verdict: Verdict
    detail: str


def by_share(share: float, nothing: float = 0.0) -> Verdict:
    """Of a share of images with a fault, of which `nothing` is none."""
    return "high" if share <= nothing else "warn" if share <= MUCH else "unreliable"


def at_most(worst: Verdict, verdict: Verdict) -> Verdict:
    return min(worst, verdict, key=ORDER.index)


def at_least(least: Verdict, verdict: Verdict) -> Verdict:
    return max(least, verdict, key=ORDER.index)
