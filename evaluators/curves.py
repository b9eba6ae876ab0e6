"""Robust accuracy against eps from the distances of one minimum-norm attack: the part `curves` of results.json."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from evaluators.fields import CONFIG, Count, Distance, Eps, Share, Shares, at_most

MOST_STEPS = 256
"""Steps of a curve that are kept. Those left out lie between two that are kept."""


class _Part(BaseModel):
    model_config = CONFIG


class CurveStep(_Part):
    """At this distance, and up to the next step, so many images are still right."""

    eps: Distance
    robust: Count


class ExactPoint(_Part):
    """What an attack inside the ball found at one radius on the same images: stronger there than the curve."""

    row: str
    """Id of its row."""
    eps: Eps
    robust_accuracy: Share
    robust: Count
    ci95: Shares


class Curve(_Part):
    """How many images are still right when perturbations may be `eps` long in `norm`.

    An image falls at the distance of the nearest adversarial image that one attack found. A nearer one may exist, so
    this is an upper bound of robust accuracy at every eps.
    """

    row: str
    """Id of the attack's row."""
    norm: str
    n: Count
    """Images that were looked at, from the first."""
    bound: Literal["upper"] = "upper"
    steps: list[CurveStep] = Field(min_length=1)
    """Ascending in eps, from clean accuracy at 0."""
    exact: list[ExactPoint] = []

    @model_validator(mode="after")
    def _falls(self) -> Self:
        for before, after in zip(self.steps, self.steps[1:], strict=False):
            if after.eps <= before.eps or after.robust > before.robust:
                raise ValueError(f"the curve of {self.row} rises, or goes back, at {after.eps:g}")
        return at_most(
            self, max(*(each.robust for each in self.steps), *(each.robust for each in self.exact), 0), self.n
        )

    def at(self, eps: float) -> int:
        """Images that are still right at `eps`, as far as the kept steps tell."""
        return next(each.robust for each in reversed(self.steps) if each.eps <= eps or each is self.steps[0])

    @property
    def exact_radii(self) -> list[float]:
        """Where there are exact points."""
        return [point.eps for point in self.exact]

    @property
    def reach(self) -> float:
        """Where the curve ends, or has fallen to a fiftieth of its height, whichever is nearer."""
        least = self.steps[0].robust / 50
        return next((each.eps for each in self.steps if each.robust <= least), self.steps[-1].eps)


def steps_of(right: int, distances: Sequence[float], most: int = MOST_STEPS) -> list[CurveStep]:
    """The steps of a curve, at most about `most` of them, the first and the last among them.

    Args:
        right: images that are right when clean.
        distances: to the adversarial images that the deployed runtime gets wrong.
    """
    found = {0.0: right}
    for fallen, distance in enumerate(sorted(distances), start=1):
        found[distance] = right - fallen
    steps = list(found.items())
    stride = max(1, -(-len(steps) // most))
    kept = [*steps[:-1:stride], steps[-1]] if len(steps) > 1 else steps
    return [CurveStep(eps=eps, robust=robust) for eps, robust in kept]
