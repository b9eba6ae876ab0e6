"""A few batches that tell what an evaluation will cost: the seconds of a pass, and how many images will withstand."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgad_tk.data import Split
from dgad_tk.losses import cross_entropy
from dgad_tk.predictor import Images, Predictor
from evaluators.attacks.native import Victim
from evaluators.attacks.pgd import ProjectedGradient
from evaluators.ball import Norm, into_ball
from evaluators.estimators import to_estimator
from evaluators.evaluate import CHUNK
from evaluators.judge import images_of, judge
from evaluators.rows import Row

RUNS = 3
SMALLER = 8
"""Costs are measured at the full batch and at one so many times smaller."""
CLEAN_IMAGES = 256
PILOT_LEAST, PILOT_MOST, PILOT_SECONDS = 16, 64, 5.0
"""Images of a pilot attack: as many as this time is enough for, between the two."""
STEPS = 10

Clock = Callable[[], float]
Target = tuple[str | None, Norm, float]
"""Name of the surrogate that is attacked, None for the model itself; norm; eps."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a pass: `call` for a batch of any size, and `image` for each image in it."""

    call: float
    image: float

    def per_image(self, batch: float) -> float:
        """Seconds of one image in a batch of so many."""
        return self.call / max(batch, 1.0) + self.image


@dataclass(frozen=True)
class Costs:
    """Passes of one model: `forward` by its runtime, `backward` by its module, with the forward pass that belongs to
    it; None for a black box."""

    forward: Cost
    backward: Cost | None


@dataclass(frozen=True)
class Survey:
    """What a few batches tell of an evaluation.

    Attributes:
        costs: of each model that is searched on: surrogates by name, the model itself under None.
        clean: share of images that the model gets right.
        robust: share of these that withstand PGD-10. Absent where that cannot be asked: for a black box, or in a norm
            that PGD does not have.
        batch_size: images at a time.
        classes: logits of the model.
    """

    costs: Mapping[str | None, Costs]
    clean: float
    robust: Mapping[Target, float]
    batch_size: int
    classes: int


def survey(
    predictor: Predictor,
    split: Split,
    rows: Sequence[Row],
    *,
    batch_size: int,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> Survey:
    """Measure on the first images of `split` what `rows` ask for.

    Args:
        batch_size: that the evaluation will have.
        clock: seconds; a test brings its own.
    """
    sources: dict[str | None, Predictor] = {None: predictor}
    for row in rows:
        if row.surrogate is not None and row.surrogate.predictor is not None:
            sources[row.surrogate.name] = row.surrogate.predictor
    batch = images_of(split, slice(0, min(batch_size, CHUNK)))
    costs = {name: measure(source, batch, clock) for name, source in sources.items()}

    x, labels = images_of(split, slice(0, CLEAN_IMAGES)), split.labels[:CLEAN_IMAGES]
    predicted, finite = judge(predictor, x, batch_size)
    right = np.flatnonzero((predicted == labels) & finite)
    robust: dict[Target, float] = {}
    for row in rows:
        name = row.surrogate.name if row.surrogate else None
        radii = [] if row.eps is None else [*row.smaller, row.eps]
        backward = costs[name].backward if name in costs else None
        for target in ((name, row.norm, eps) for eps in radii):
            if backward is not None and target not in robust and row.norm in ("linf", "l2"):
                chosen = right[: _affordable(backward)]
                robust[target] = _withstand(
                    sources[name], x[chosen], labels[chosen], split.index[chosen], target, seed, batch_size
                )
    return Survey(costs, len(right) / len(labels), robust, batch_size, predictor.classes)


def measure(predictor: Predictor, images: Images, clock: Clock = time.perf_counter) -> Costs:
    """Costs of passes of `images`, from that batch and a smaller one."""
    sizes = sorted({max(1, len(images) // SMALLER), len(images)})
    forward = _cost({size: _seconds(partial(predictor.predict, images[:size]), clock) for size in sizes})
    if predictor.module is None:
        return Costs(forward, None)
    victim = Victim(to_estimator(predictor))
    x, labels = (torch.from_numpy(each).to(victim.device) for each in (images, np.zeros(len(images), dtype=np.int64)))

    def gradient(size: int) -> Tensor:
        part = x[:size].requires_grad_()
        return torch.autograd.grad(cross_entropy(victim.logits(part), labels[:size]).sum(), part)[0]

    return Costs(forward, _cost({size: _seconds(partial(gradient, size), clock) for size in sizes}))


def _seconds(call: Callable[[], Any], clock: Clock) -> float:
    """Median of RUNS, after one to warm up."""
    found = []
    for _ in range(RUNS + 1):
        begun = clock()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(clock() - begun)
    return median(found[1:])


def _cost(seconds: Mapping[int, float]) -> Cost:
    """The line through the two batch sizes; noise must make neither part negative."""
    small, large = min(seconds), max(seconds)
    image = seconds[large] / large
    if small < large:
        image = min(image, max(0.0, (seconds[large] - seconds[small]) / (large - small)))
    return Cost(seconds[large] - image * large, image)


def _affordable(backward: Cost) -> int:
    images = PILOT_SECONDS / max(STEPS * backward.per_image(PILOT_MOST), 1e-9)
    return int(min(PILOT_MOST, max(PILOT_LEAST, images)))


def _withstand(
    source: Predictor,
    x: Images,
    labels: NDArray[np.int64],
    index: NDArray[np.int64],
    target: Target,
    seed: int,
    batch_size: int,
) -> float:
    """Share of images that PGD-10 leaves right, never all or none: a few images cannot say that of many.

    The half image that is added to either side is Jeffreys' prior. One robust image in a hundred can cost an ensemble
    more than the other 99.
    """
    _, norm, eps = target
    attack = ProjectedGradient(
        to_estimator(source), norm=norm, eps=eps, step_size=eps / 4, steps=STEPS, seed=seed, batch_size=batch_size
    )
    x_adv = into_ball(attack.generate(x, labels, index=index), x, norm, eps)
    predicted, finite = judge(source, x_adv, batch_size)
    held = int(((predicted == labels) & finite).sum())
    return (held + 0.5) / (len(x) + 1)
