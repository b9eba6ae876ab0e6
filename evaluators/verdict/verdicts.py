"""How far an evaluation is to be believed: from a figure to one of three words."""

from collections.abc import Iterable

from evaluators.results import Verdict

ORDER: tuple[Verdict, ...] = ("high", "warn", "unreliable")
MUCH = 0.1
"""Above this share of the images it is no oddity of a few: the model hides something, or something is wrong."""
SLACK, CLEAR = 0.01, 0.05
"""Differences of accuracy up to SLACK are noise, and so is that of a single image; one above CLEAR is no accident."""


def by_share(share: float, nothing: float = 0.0) -> Verdict:
    """Of a share of images with a fault, of which `nothing` is none."""
    return _between(share, nothing, MUCH)


def by_size(value: float, limits: tuple[float, float]) -> Verdict:
    """Of something that is small below the first limit, and decides above the second."""
    return _between(value, *limits)


def by_gap(difference: float, images: float) -> Verdict:
    """Of a difference of two accuracies on so many images, by which what knows less has found more."""
    noise = max(SLACK, 1.5 / images)
    return _between(difference, noise, max(noise, CLEAR))


def worst_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of all, `high` of none."""
    return max(verdicts, key=ORDER.index, default="high")


def _between(value: float, noise: float, clear: float) -> Verdict:
    return "high" if value <= noise else "warn" if value <= clear else "unreliable"


def at_most(worst: Verdict, verdict: Verdict) -> Verdict:
    """`verdict`, but no worse than `worst`."""
    return min(worst, verdict, key=ORDER.index)


def at_least(least: Verdict, verdict: Verdict) -> Verdict:
    """`verdict`, but at least as bad as `least`."""
    return max(least, verdict, key=ORDER.index)
