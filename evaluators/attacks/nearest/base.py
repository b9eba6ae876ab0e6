"""What the minimum-norm attacks share: even batches, the nearest image so far, and the judgement of the runtime."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from art.estimators.classification.classifier import ClassifierMixin
from torch import Tensor

from dgad_tk.ascent.directions import finite, unit
from dgad_tk.config.threat import Norm
from evaluators.attacks.arguments import at_least
from evaluators.attacks.autoattack.seats import even
from evaluators.attacks.native import NativeAttack, images_of_rows, pixel_rows, wrong
from evaluators.attacks.nearest.lengths import length, shortened

FURTHER = (1.002, 1.005, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5)
"""Where the runtime still gets an image right that the module gets wrong, the perturbation is lengthened so many times,
in this order, until the runtime gets it wrong too."""


@dataclass
class Search:
    """The searches of a batch of B images. Pixels are flat, `(B, D)`, channels last.

    Attributes:
        x: the images; `y` their labels and `index` their places in the dataset, `(B,)`.
        point: where each search is.
        best: the nearest adversarial image so far; the image itself before there is one.
        nearest: its distance, infinite before there is one, `(B,)`.
        judged: the deployed runtime is asked about each point that the module gets wrong.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    shape: tuple[int, ...]
    norm: Norm
    judged: bool = False
    point: Tensor = field(init=False)
    best: Tensor = field(init=False)
    nearest: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.point, self.best = self.x.clone(), self.x.clone()
        self.nearest = self.x.new_full((len(self.x),), torch.inf)

    @property
    def widest(self) -> Tensor:
        """Distance of the farthest corner of [0, 1]^D, `(B,)`."""
        return length(torch.maximum(self.x, 1 - self.x), self.norm)

    def offer(self, distance: Tensor, missed: Tensor) -> None:
        """Keep `point` where the model gets it wrong (`missed`) and it is nearer than the nearest so far."""
        nearer = missed & (distance < self.nearest)
        self.nearest = torch.where(nearer, distance, self.nearest)
        torch.where(nearer[:, None], self.point, self.best, out=self.best)


class NearestAttack(NativeAttack):
    """An attack that makes the distance small in `steps` passes of each image. A subclass writes `descend`.

    The module that gives gradients leads the search. What it found is judged by the deployed runtime; where that still
    gets an image right, as rounding can make it, the perturbation is lengthened (`FURTHER`). If that does not help,
    such as where the module gets the image itself wrong, the image is searched again, and the runtime is asked at each
    step. In L0, changed values that are not needed are taken back at the end, by some ten forward passes. An image
    whose search fails comes back as it was.

    Args:
        norm: in which the distance is made small.
        steps: forward passes with their backward passes, of each image.

    Other arguments are those of `NativeAttack`.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1", "l0")

    def __init__(
        self, estimator: ClassifierMixin, *, norm: Norm, steps: int, seed: int = 0, batch_size: int = 250
    ) -> None:
        super().__init__(estimator, norm=norm, eps=0.0, seed=seed, batch_size=batch_size)
        at_least(1, steps=steps)
        self.steps = steps

    @torch.no_grad()
    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        shape, size = tuple(x.shape[1:]), even(len(x), self.batch_size)
        batches = zip(*(torch.split(each, size) for each in (pixel_rows(x), y, index)), strict=True)
        found = [self._judged(images, labels, places, shape) for images, labels, places in batches]
        return images_of_rows(torch.cat(found), shape)

    def _judged(self, x: Tensor, y: Tensor, index: Tensor, shape: tuple[int, ...]) -> Tensor:
        run = self._ran(Search(x, y, index, shape, self.norm))
        if self.victim.by_module:
            return run.best
        held = self._lengthened(run)
        if len(left := held.nonzero()[:, 0]):
            again = self._ran(Search(x[left], y[left], index[left], shape, self.norm, judged=True))
            run.best[left] = again.best
        return run.best

    def _ran(self, run: Search) -> Search:
        self.descend(run)
        if self.norm == "l0":
            self._fewer(run)
        return run

    def _lengthened(self, run: Search) -> Tensor:
        """Lengthen what the runtime still gets right; the images that it gets right all the same, bool `(B,)`."""
        held = run.nearest.isfinite()
        found = images_of_rows(run.best[held], run.shape)
        held[held.clone()] = ~wrong(self.victim.verdicts(found), run.y[held])
        for factor in FURTHER:
            left = held.nonzero()[:, 0]
            if not len(left):
                break
            further = torch.lerp(run.x[left], run.best[left], factor).clamp_(0, 1)
            broken = wrong(self.victim.verdicts(images_of_rows(further, run.shape)), run.y[left])
            run.best[left[broken]] = further[broken]
            held[left[broken]] = False
        return held

    def _fewer(self, run: Search) -> None:
        """Keep as few of the changed values as the deployed runtime still gets wrong: the largest, found by bisection.

        That takes as many forward passes as the number of changed values has binary digits.
        """
        change, least = run.best - run.x, torch.zeros_like(run.nearest)
        most = length(change, "l0")
        for _ in range(int(most.max()).bit_length()):
            middle = ((least + most) / 2).floor()
            kept = shortened(change, run.x, middle, "l0") != 0
            points = torch.where(kept, run.best, run.x)
            missed = wrong(self.victim.verdicts(images_of_rows(points, run.shape)), run.y) & (middle < most)
            least, most = torch.where(missed, least, middle), torch.where(missed, middle, most)
            run.best = torch.where(missed[:, None], points, run.best)

    @abstractmethod
    def descend(self, run: Search) -> None:
        """Move `run.point` for `steps` steps, and offer each point to `run` with the model's answer to it."""

    def looked(self, run: Search) -> tuple[Tensor, Tensor]:
        """The logits at `run.point`, with a graph `(B, K)`, and the leaf they depend on, `(B, D)`."""
        leaf = run.point.detach().requires_grad_()
        with torch.enable_grad():
            return self.victim.logits(images_of_rows(leaf, run.shape)), leaf

    def missed(self, logits: Tensor, run: Search) -> Tensor:
        """Which of the points `run.point` are adversarial, by their `logits`, bool `(B,)`."""
        missed = wrong(logits.detach(), run.y)
        if not run.judged:
            return missed
        return self.victim.confirmed(missed, images_of_rows(run.point, run.shape), run.y, certain=False)

    def direction(self, gradient: Tensor, run: Search, step: int) -> Tensor:
        """The gradient `(B, D)` with L2 norm 1. Where it is 0, a direction drawn for the image and the step."""
        found = unit(gradient)
        flat = (found == 0).all(dim=1).nonzero()[:, 0]
        if len(flat):
            purpose = f"{type(self).__name__} direction"
            found[flat] = unit(self.draws.normal(purpose, found.shape[1:], index=run.index[flat], step=step).to(found))
        return found


def gradient_of(values: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of each image's value `(B,)` with respect to its row of `leaf`, finite, `(B, D)`."""
    # An image's logits depend on that image alone, so the gradient of the sum holds each image's gradient.
    return finite(torch.autograd.grad(values, leaf, torch.ones_like(values))[0])


def annealed(first: float, last: float, share: float) -> float:
    """From `first` to `last` along half a cosine; `share` of the way is behind."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
