"""What a pass through a model costs, so that dear attacks can be priced without being run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.ascent.losses import margin
from dgad_tk.config.threat import Norm
from dgad_tk.data import Split
from dgad_tk.distributed import leaders
from evaluators.attacks.native import Victim
from evaluators.attacks.passes import Case, Passes
from evaluators.attacks.spec import AttackSpec
from evaluators.engine.evaluate import evaluate
from evaluators.plan.rows import plan
from evaluators.target.estimators import to_estimator
from evaluators.target.judge import images_of

REPEATS = 3
SLOW = 0.5
"""Seconds of a pass above which it is not repeated, and not tried on more images."""
OVERHEAD = 1.25
"""An attack's own arithmetic, as a share of its passes; of ours on small networks, where it weighs most."""
LEFT_SECONDS, MOST = 4.0, 128
"""How long PGD may take that tells which images will have to be searched to the end, and on how many it runs."""
PGD_PASSES = 12


@dataclass(frozen=True)
class Price:
    """Seconds of a pass of one image in full batches, and of a whole pass of few images.

    Attributes:
        forward, gradient: per image.
        few: of a batch of as many images as a pilot begins with: forward, and with backward.
    """

    forward: float
    gradient: float
    few: tuple[float, float]

    def seconds(self, passes: Passes) -> float:
        """Of one image that is searched to the end, in full batches."""
        return OVERHEAD * (passes.forwards * self.forward + passes.gradients * self.gradient)

    def pilot(self, passes: Passes) -> float:
        """Of a pilot's first run, in which every pass is a small batch."""
        return passes.forwards * self.few[0] + passes.gradients * self.few[1]


def price_of(predictor: Predictor, split: Split, batch_size: int, few: int) -> Price:
    """Time passes of `few` images, then of a whole batch where that is quick."""
    victim = Victim(to_estimator(predictor))
    answer = _forward(victim)
    climb = _gradient(victim) if victim.module is not None else answer
    small, large = min(few, len(split)), min(batch_size, len(split))
    first = tuple(_timed(each, victim, split, small) for each in (answer, climb))
    whole = first
    if large > small and first[1] * large / small < 2 * SLOW:
        whole = tuple(_timed(each, victim, split, large) for each in (answer, climb))
        return Price(whole[0] / large, whole[1] / large, (first[0], first[1]))
    return Price(whole[0] / small, whole[1] / small, (first[0], first[1]))


def passes_of(spec: AttackSpec, params: Mapping[str, Any], norm: Norm, predictor: Predictor) -> Passes | None:
    """What an image costs that the attack does not break; None where only a run can tell."""
    if spec.passes is None or (spec.needs_gradients and predictor.module is None):
        return None
    side = min(predictor.input_shape[1:])
    siblings = len(predictor.siblings) if spec.siblings else 0
    return spec.passes(Case(params, norm, predictor.classes, side, predictor.precision == "int8", siblings))


def shares_left(
    predictor: Predictor, split: Split, norm: Norm, radii: Sequence[float], price: Price, *, batch_size: int, seed: int
) -> dict[float, float]:
    """By radius, the share of images that PGD leaves right: at least as many as a strong attack will have to search on.

    All clean images where there are no gradients.
    """
    # Each process has times of its own, but all have to evaluate the same images.
    count = leaders(int(LEFT_SECONDS / max(PGD_PASSES * price.gradient * len(radii), 1e-9)))
    part = split.subset(max(8, min(MOST, count, len(split))))
    names = ["pgd"] if predictor.module is not None else []
    done = evaluate(predictor, part, plan(names, norm=norm, eps=list(radii)), seed=seed, batch_size=batch_size)
    judged = done.judged_eps
    return {eps: done.worst_case(eps) if eps in judged else done.clean_accuracy for eps in radii}


Pass = Callable[[Tensor, Tensor], object]


def _forward(victim: Victim) -> Pass:
    return lambda x, y: victim.answers(x)


def _gradient(victim: Victim) -> Pass:
    def climb(x: Tensor, y: Tensor) -> object:
        images = x.clone().requires_grad_()
        return torch.autograd.grad(margin(victim.logits(images), y).sum(), images)

    return climb


def _timed(run: Pass, victim: Victim, split: Split, count: int) -> float:
    """The least of some times, after a first that warms up; of a slow pass the first."""
    x = torch.from_numpy(images_of(split, slice(0, count))).to(victim.device)
    y = torch.from_numpy(split.labels[:count]).to(victim.device)
    times = []
    for number in range(1 + REPEATS):
        begun = time.perf_counter()
        run(x, y)
        if victim.device.type == "cuda":
            torch.cuda.synchronize(victim.device)
        took = time.perf_counter() - begun
        if number or took > SLOW:
            times.append(took)
        if took > SLOW:
            break
    return min(times)
