"""From a figure to one of three words: how far an evaluation can be believed."""

from collections.abc import Iterable

from evaluators.results import Verdict

ORDER: tuple[Verdict, ...] = ("high", "warn", "unreliable")
MUCH = 0.1
"""A fault on more than this share of the images makes an evaluation unreliable."""
SLACK, CLEAR = 0.01, 0.05
"""A difference of accuracy up to SLACK, or of one image, is noise. Above CLEAR it makes an evaluation unreliable."""


def by_share(share: float, nothing: float = 0.0) -> Verdict:
    """For a share of images with a fault; up to `nothing` it is noise."""
    return _between(share, nothing, MUCH)


def by_size(value: float, limits: tuple[float, float]) -> Verdict:
    """For a value that is noise up to the first limit, and unreliable above the second."""
    return _between(value, *limits)


def by_gap(difference: float, images: float) -> Verdict:
    """For the difference of two accuracies on `images`: how much more the attack found that knows less."""
    noise = max(SLACK, 1.5 / images)
    return _between(difference, noise, max(noise, CLEAR))


def worst_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst verdict; `high` if there are none."""
    return max(verdicts, key=ORDER.index, default="high")


def _between(value: float, noise: float, clear: float) -> Verdict:
    return "high" if value <= noise else "warn" if value <= clear else "unreliable"


def at_most(worst: Verdict, verdict: Verdict) -> Verdict:
    """`verdict`, but no worse than `worst`."""
    return min(worst, verdict, key=ORDER.index)


def at_least(least: Verdict, verdict: Verdict) -> Verdict:
    """`verdict`, but at least as bad as `least`."""
    return max(least, verdict, key=ORDER.index)
