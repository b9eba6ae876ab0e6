"""Measurements on the model itself, once per evaluation. Are its answers always the same? Are its outputs logits? Do
its gradients lead to adversarial images? `evaluators.verdict.checks` judges them.

After Carlini et al., "On Evaluating Adversarial Robustness" (2019, https://arxiv.org/abs/1902.06705), sections 4 and 5;
Athalye et al., "Obfuscated Gradients Give a False Sense of Security" (ICML 2018), section 3.1; and Croce & Hein,
"Reliable evaluation of adversarial robustness" (ICML 2020), section 4, for saturation of the cross-entropy.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dgad_tk.answers.spread import apart, grain, yardstick
from dgad_tk.artifacts.predictor import Images, Logits, Predictor
from dgad_tk.ascent.directions import finite
from dgad_tk.ascent.inner_max import inner_max
from dgad_tk.ascent.losses import cross_entropy, margin
from dgad_tk.config.threat import Norm, ThreatModel
from dgad_tk.data import Split
from evaluators.attacks.native import Victim
from evaluators.target.ball import into_ball
from evaluators.target.estimators import to_estimator
from evaluators.target.judge import REPEATS, allowed, images_of, judge, logits_of

LARGEST, SMALLEST, PIXELS = 64, 16, 2**18
"""Images that are probed: as many as have PIXELS pixels per channel, at most LARGEST and at least SMALLEST."""
MANY = 256
"""Images that are probed where one prediction per image is enough."""
STEPS = 20
WAYPOINTS = (0, 1, 5, 10, STEPS)
"""Steps of PGD after which its mean loss is noted."""
FAR = 1e9
"""Stands for an infinite difference, in any unit, since JSON has no infinity."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits `(N, K)` and labels `(N,)` to what an attack makes large, `(N,)`."""
Batch = tuple[Tensor, Tensor]
"""Images `(N, C, H, W)` and labels `(N,)` on the model's device."""


@dataclass(frozen=True)
class Answers:
    """What predictions alone tell.

    Attributes:
        random_logits: largest difference of a second answer to the same batch, relative to how far apart an image's
            logits are.
        random_predictions: share of images whose second prediction differs.
        batch_logits, batch_predictions: the same for images in another order and in half batches, relative to the
            rounding that is allowed.
        grain: the step of float32 at the median image's largest logit, relative to how far apart its logits are.
        probabilities: the outputs are not negative and sum to 1.
    """

    random_logits: float
    random_predictions: float
    batch_logits: float
    batch_predictions: float
    grain: float
    probabilities: bool


@dataclass(frozen=True)
class Ascent:
    """PGD from the image itself, 20 steps of eps / 4, and one step of eps (FGSM).

    Attributes:
        losses: mean cross-entropy by number of PGD steps. Logits that are less than 1 apart are scaled to be 1 apart.
            Empty if no image has finite losses.
        loss_fgsm: after the single step; None if `losses` is empty.
        left_fgsm, left_pgd: share of images that stay right.
        module_only: share of images that FGSM or PGD breaks for the module but not for the runtime.
    """

    losses: dict[int, float]
    loss_fgsm: float | None
    left_fgsm: float
    left_pgd: float
    module_only: float


@dataclass(frozen=True)
class Gradients:
    """Where the gradients of the module lead.

    Attributes:
        zero, zero_margin: share of images whose gradient of the cross-entropy, or of the margin, is zero or not finite.
        non_finite: share of images with an entry that is not finite in one of the two.
        left_at_eps_1: share that PGD on the margin leaves right although it may change an image completely.
        ascent: at the evaluated radius; None without one.
    """

    zero: float
    zero_margin: float
    non_finite: float
    left_at_eps_1: float
    ascent: Ascent | None


@dataclass(frozen=True)
class Exchange:
    """The first `images` with red and blue exchanged, the order of OpenCV and Caffe.

    Attributes:
        rights, spoils: how many images become right, and how many become wrong.
    """

    images: int
    rights: int
    spoils: int


@dataclass(frozen=True)
class Probes:
    """All measurements. A part is None if there was nothing to measure.

    Attributes:
        images: how many images were probed. The model gets all of them right.
    """

    images: int
    answers: Answers | None = None
    gradients: Gradients | None = None
    exchange: Exchange | None = None


def probe(
    predictor: Predictor, split: Split, clean_right: NDArray[np.bool_], *, norm: Norm, eps: float, batch_size: int
) -> Probes:
    """Probe a model on the first images of `split` that it gets right, without random draws.

    It costs about 45 steps of PGD and a dozen predictions on at most LARGEST images.

    Args:
        clean_right: where the clean prediction is right, bool `(len(split),)`.
        eps: the largest evaluated radius; 0 for none.
    """
    exchange = _exchange(predictor, split, clean_right, batch_size)
    count = min(LARGEST, max(SMALLEST, PIXELS // math.prod(predictor.input_shape[1:])))
    chosen = np.flatnonzero(clean_right)[:count]
    if len(chosen) == 0:
        return Probes(0, exchange=exchange)
    x, labels = images_of(split, chosen), split.labels[chosen]
    first = logits_of(predictor, x, batch_size)
    answers, gradients = _answers(predictor, x, first, batch_size), None
    if predictor.module is not None:
        # If logits are much less than 1 apart, a rise of the cross-entropy is lost in float32.
        unit = min(1.0, float(np.median(yardstick(first)))) or 1.0
        gradients = _Climber(predictor, x, labels, batch_size).look(norm, eps, unit)
    return Probes(len(chosen), answers, gradients, exchange)


def _exchange(predictor: Predictor, split: Split, clean_right: NDArray[np.bool_], batch_size: int) -> Exchange | None:
    """None if images are grey, or all are right."""
    count = min(len(split), MANY)
    before = clean_right[:count]
    if predictor.input_shape[0] != 3 or before.all():
        return None
    x = images_of(split, slice(0, count))
    after = judge(predictor, x[:, ::-1], batch_size).right(split.labels[:count])
    return Exchange(count, int((after & ~before).sum()), int((before & ~after).sum()))


def _answers(predictor: Predictor, x: Images, first: Logits, batch_size: int) -> Answers:
    again = [logits_of(predictor, x, batch_size) for _ in range(REPEATS)]
    # Neither the other images of a batch nor their number may matter.
    regrouped = logits_of(predictor, x[::-1].copy(), max(1, min(batch_size, len(x)) // 2))[::-1]
    rounding = allowed(predictor, first)[0]
    return Answers(
        random_logits=max(_relative(apart(each, first), yardstick(first)) for each in again),
        random_predictions=max(_share(each.argmax(axis=1) != first.argmax(axis=1)) for each in again),
        batch_logits=_relative(apart(regrouped, first), rounding),
        batch_predictions=_share(regrouped.argmax(axis=1) != first.argmax(axis=1)),
        grain=_relative(np.median(grain(first)), np.median(yardstick(first))),
        probabilities=bool((first >= 0).all() and np.allclose(first.sum(axis=1), 1.0, atol=1e-4)),
    )


def _relative(gaps: ArrayLike, units: ArrayLike) -> float:
    """The largest of `gaps`, each divided by its unit, and at most FAR, as with a unit of 0."""
    gaps = np.asarray(gaps)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(gaps == 0, 0.0, np.minimum(gaps / np.asarray(units), FAR)).max())


class _Climber:
    """Follows the gradients of a module on some images, and asks the runtime whether that breaks them."""

    def __init__(self, predictor: Predictor, x: Images, labels: NDArray[np.int64], batch_size: int) -> None:
        self.predictor, self.x, self.labels, self.batch_size = predictor, x, labels, batch_size
        self.victim = Victim(to_estimator(predictor))

    def look(self, norm: Norm, eps: float, unit: float) -> Gradients:
        """Follow gradients within `eps` and in the whole of [0, 1]; losses are those of logits divided by `unit`."""
        by_loss = [
            torch.cat([self._gradient(loss, *batch) for batch in self._batches(self.x)])
            for loss in (cross_entropy, _lead)
        ]
        zero = [(finite(gradient) == 0).flatten(1).all(dim=1) for gradient in by_loss]
        sound = torch.stack([gradient.isfinite().flatten(1).all(dim=1) for gradient in by_loss]).all(dim=0)
        # In Linf, all of [0, 1] is within 1 of every image, so this probe does not depend on the norm.
        everything, _ = self._ascend(_lead, ThreatModel.of("linf", 1.0, STEPS))
        left = self._left(into_ball(everything, self.x, "linf", 1.0))
        ascent = None
        if eps > 0:
            ascent, held = self._within(norm, eps, unit)
            left &= held
        return Gradients(
            zero=_share(zero[0]),
            zero_margin=_share(zero[1]),
            non_finite=_share(~sound),
            left_at_eps_1=_share(left),
            ascent=ascent,
        )

    def _within(self, norm: Norm, eps: float, unit: float) -> tuple[Ascent, NDArray[np.bool_]]:
        """FGSM and PGD within `eps`, and the images that both leave right."""
        # For L1 the largest L2 ball inside is enough, since the probe only asks where gradients lead.
        ball: Literal["linf", "l2"] = "linf" if norm == "linf" else "l2"
        radius = eps / math.sqrt(self.x[0].size) if norm == "l1" else eps
        many = ThreatModel.of(ball, radius, STEPS)
        one = many.model_copy(update={"step_size": radius, "steps": 1})
        known = np.ones(len(self.x), np.bool_)
        module_only, held = ~known, known
        losses, left = [], []
        for threat in (one, many):
            x_adv, passed = self._ascend(cross_entropy, threat, unit)
            x_adv = into_ball(x_adv, self.x, ball, radius)
            right = self._left(x_adv)
            module_only = module_only | (right & (self._searched(x_adv) != self.labels))
            known, held = known & np.isfinite(passed).all(axis=0), held & right
            losses.append(passed)
            left.append(_share(right))
        climb = {step: float(losses[1][step, known].mean()) for step in WAYPOINTS} if known.any() else {}
        fgsm = float(losses[0][1, known].mean()) if climb else None
        return Ascent(climb, fgsm, left[0], left[1], _share(module_only)), held

    def _batches(self, images: Images) -> Iterator[Batch]:
        tensors = (torch.from_numpy(each).to(self.victim.device) for each in (images, self.labels))
        return zip(*(torch.split(each, self.batch_size) for each in tensors), strict=True)

    def _gradient(self, loss: Loss, x: Tensor, labels: Tensor) -> Tensor:
        images = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(self.victim.logits(images), labels).sum(), images)
        return gradient

    def _ascend(self, loss: Loss, threat: ThreatModel, unit: float = 1.0) -> tuple[Images, NDArray[np.float32]]:
        """The last iterates of PGD, which starts at the images; and the loss of logits divided by `unit` after 0 to
        `steps` steps, `(steps + 1, N)`."""
        found, losses = [], []
        for x, labels in self._batches(self.x):
            passed: list[Tensor] = []

            def noted(images: Tensor, labels: Tensor = labels, passed: list[Tensor] = passed) -> Tensor:
                logits = self.victim.logits(images)
                value = loss(logits, labels)
                passed.append(value.detach() if unit == 1 else loss(logits.detach() / unit, labels))
                return value

            x_adv = inner_max(noted, x, x, threat)
            with torch.no_grad():
                noted(x_adv)
            found.append(x_adv.cpu().numpy())
            losses.append(torch.stack(passed).cpu().numpy())
        return np.concatenate(found), np.concatenate(losses, axis=1)

    def _left(self, x_adv: Images) -> NDArray[np.bool_]:
        return judge(self.predictor, x_adv, self.batch_size).right(self.labels)

    def _searched(self, x_adv: Images) -> NDArray[np.int64]:
        """Predictions `(N,)` of the module that gives the gradients."""
        with torch.no_grad():
            logits = torch.cat([self.victim.logits(x) for x, _ in self._batches(x_adv)])
        return np.asarray(logits.argmax(dim=1).cpu().numpy())


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """The lead of another class. Unlike the cross-entropy it has a gradient wherever the logits have one."""
    return -margin(logits, labels)


def _share(where: NDArray[np.bool_] | Tensor) -> float:
    return float(where.sum()) / len(where)
