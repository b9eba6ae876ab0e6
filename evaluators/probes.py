"""Measurements on the model itself, made once an evaluation, that `checks` judges: is its answer one answer, are its
outputs logits, do its gradients lead anywhere.

After Carlini et al., "On Evaluating Adversarial Robustness" (2019, https://arxiv.org/abs/1902.06705), sections 4 and 5;
Athalye et al., "Obfuscated Gradients Give a False Sense of Security" (ICML 2018), section 3.1; and Croce & Hein,
"Reliable evaluation of adversarial robustness" (ICML 2020), section 4, for the cross-entropy that saturates.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dgad_tk.config import ThreatModel
from dgad_tk.data import Split
from dgad_tk.inner_max import inner_max
from dgad_tk.losses import cross_entropy, margin
from dgad_tk.predictor import Images, Logits, Predictor
from dgad_tk.spread import apart, grain, yardstick
from evaluators.attacks.native import Victim
from evaluators.ball import Norm, into_ball
from evaluators.estimators import to_estimator
from evaluators.judge import REPEATS, allowed, images_of, judge

LARGEST, SMALLEST, PIXELS = 64, 16, 2**18
"""Images looked at: as many as make PIXELS pixels a channel, at most LARGEST and at least SMALLEST."""
MANY = 256
"""Images that are looked at where that takes one prediction each."""
STEPS = 20
WAYPOINTS = (0, 1, 5, 10, STEPS)
"""Steps of PGD after which its mean loss is noted."""
FAR = 1e9
"""A difference, in whatever it is measured by, of a number and what is none."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits `(N, K)` and labels `(N,)` to what an attack makes large, `(N,)`."""


def probe(
    predictor: Predictor, split: Split, clean_right: NDArray[np.bool_], *, norm: Norm, eps: float, batch_size: int
) -> dict[str, float]:
    """Look at a model on the first images of `split` that it gets right.

    It costs some 45 steps of PGD and a dozen predictions on at most LARGEST images, and draws nothing.

    Args:
        clean_right: bool `(len(split),)`.
        eps: the radius that is evaluated, the largest of several; 0 for none, which leaves out what needs one.

    Returns:
        Finite numbers; all but `images` are absent where there was nothing to measure them on.

        - `images`: how many were looked at.
        - `random_logits`, `random_predictions`: largest difference of a second answer to the same batch, relative to
          how far apart an image's logits are, and the share of images whose prediction differs.
        - `batch_logits`, `batch_predictions`: the same for images asked in another order and in halves, relative to the
          rounding that is allowed.
        - `grain`: the step of float32 at an image's largest logit, relative to how far apart its logits are; of the
          median image.
        - `looks_like_probabilities`: 1 if the outputs are not negative and sum to 1.
        - `zero_gradients`, `zero_margin_gradients`: share of images whose gradient of the cross-entropy, or of the
          margin, is zero, so that it leads nowhere.
        - `non_finite_gradients`: share of images with a non-finite one of either.
        - `left_at_eps_1`: share that PGD on the margin leaves right when it may do anything to an image.
        - `loss_at_0` … `loss_at_20`: mean cross-entropy along PGD at `eps`, from the image itself, steps of eps / 4.
          Of logits that are less than 1 apart, as if they were 1 apart.
        - `loss_fgsm`, `left_fgsm`, `left_pgd`: mean loss, and share left right, of one step of `eps` and of that PGD.
        - `module_only`: share of images that PGD or FGSM breaks for the module but not for the runtime.
    """
    count = min(LARGEST, max(SMALLEST, PIXELS // math.prod(predictor.input_shape[1:])))
    chosen = np.flatnonzero(clean_right)[:count]
    found = {"images": float(len(chosen))}
    if len(chosen) == 0:
        return found
    x, labels = images_of(split, chosen), split.labels[chosen]
    first = _predicted(predictor, x, batch_size)
    found |= _answers(predictor, x, first, batch_size)
    if predictor.module is not None:
        # Where logits are much less than 1 apart, float32 would not show that the cross-entropy rises.
        unit = min(1.0, float(np.median(yardstick(first)))) or 1.0
        found |= _gradients(predictor, x, labels, norm, eps, unit, batch_size)
    return found


def exchanged_channels(
    predictor: Predictor, split: Split, clean_right: NDArray[np.bool_], batch_size: int
) -> dict[str, float]:
    """Whether the model knows the images better with red and blue exchanged, as OpenCV and Caffe order them.

    Returns:
        `exchange_images`: how many were looked at, the first MANY; and of these `exchange_rights` and
        `exchange_spoils`: how many the exchange makes right, and how many it makes wrong. Nothing of images that are
        grey or all right.
    """
    count = min(len(split), MANY)
    if predictor.input_shape[0] != 3 or clean_right[:count].all():
        return {}
    x, before = images_of(split, slice(0, count)), clean_right[:count]
    predicted, finite = judge(predictor, np.ascontiguousarray(x[:, ::-1]), batch_size)
    after = (predicted == split.labels[:count]) & finite
    return {
        "exchange_images": float(count),
        "exchange_rights": float((after & ~before).sum()),
        "exchange_spoils": float((before & ~after).sum()),
    }


def _answers(predictor: Predictor, x: Images, first: Logits, batch_size: int) -> dict[str, float]:
    again = [_predicted(predictor, x, batch_size) for _ in range(REPEATS)]
    # Neither a neighbour nor the number of images may matter.
    regrouped = _predicted(predictor, x[::-1].copy(), max(1, min(batch_size, len(x)) // 2))[::-1]
    rounding = allowed(predictor, first)[0]
    return {
        "random_logits": max(_relative(apart(each, first), yardstick(first)) for each in again),
        "random_predictions": max(_share(each.argmax(axis=1) != first.argmax(axis=1)) for each in again),
        "batch_logits": _relative(apart(regrouped, first), rounding),
        "batch_predictions": _share(regrouped.argmax(axis=1) != first.argmax(axis=1)),
        "grain": _relative(np.median(grain(first)), np.median(yardstick(first))),
        "looks_like_probabilities": float((first >= 0).all() and np.allclose(first.sum(axis=1), 1.0, atol=1e-4)),
    }


def _relative(gaps: ArrayLike, units: ArrayLike) -> float:
    """The largest of `gaps`, each in its unit; FAR where there is no unit to speak of, and at most that."""
    gaps = np.asarray(gaps)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(gaps == 0, 0.0, np.minimum(gaps / np.asarray(units), FAR)).max())


def _predicted(predictor: Predictor, x: Images, batch_size: int) -> Logits:
    starts = range(0, len(x), batch_size)
    return np.concatenate([predictor.predict(np.ascontiguousarray(x[at : at + batch_size])) for at in starts])


def _gradients(
    predictor: Predictor,
    x: Images,
    labels: NDArray[np.int64],
    norm: Norm,
    eps: float,
    unit: float,
    batch_size: int,
) -> dict[str, float]:
    victim = Victim(to_estimator(predictor))
    batches = [
        tuple(torch.from_numpy(each[at : at + batch_size]).to(victim.device) for each in (x, labels))
        for at in range(0, len(x), batch_size)
    ]
    # In the L2 ball inside that of L1: all that is asked is where gradients lead.
    ball: Literal["linf", "l2"] = "linf" if norm == "linf" else "l2"
    radius = eps / math.sqrt(x[0].size) if norm == "l1" else eps
    gradients = [
        torch.cat([_gradient(victim, loss, images, truth) for images, truth in batches]).flatten(1)
        for loss in (cross_entropy, _lead)
    ]
    zero = [(gradient == 0).all(dim=1) for gradient in gradients]
    finite = torch.stack([gradient.isfinite().all(dim=1) for gradient in gradients]).all(dim=0)
    found = {
        "zero_gradients": _share(zero[0]),
        "zero_margin_gradients": _share(zero[1]),
        "non_finite_gradients": _share(~finite),
    }
    # All of [0, 1] is within 1 of any image in Linf, so this asks the same of a model whatever its norm.
    anything = ThreatModel.of("linf", 1.0, STEPS)
    everything, _ = _ascend(victim, _lead, batches, anything)
    left = _left(predictor, into_ball(everything, x, "linf", 1.0), labels, batch_size)
    if eps > 0:
        many = ThreatModel.of(ball, radius, STEPS)
        one = many.model_copy(update={"step_size": radius, "steps": 1})
        x_many, losses = _ascend(victim, cross_entropy, batches, many, unit)
        x_one, losses_one = _ascend(victim, cross_entropy, batches, one, unit)
        known = np.isfinite(losses).all(axis=0) & np.isfinite(losses_one).all(axis=0)
        if known.any():
            found |= {f"loss_at_{step}": float(losses[step, known].mean()) for step in WAYPOINTS}
            found["loss_fgsm"] = float(losses_one[1, known].mean())
        module_only = np.zeros(len(x), dtype=np.bool_)
        for name, x_adv in (("fgsm", x_one), ("pgd", x_many)):
            x_adv = into_ball(x_adv, x, ball, radius)
            held = _left(predictor, x_adv, labels, batch_size)
            found[f"left_{name}"] = _share(held)
            module_only |= held & (_searched(victim, x_adv, batch_size) != labels)
            left &= held
        found["module_only"] = _share(module_only)
    found["left_at_eps_1"] = _share(left)
    return found


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """How far another class is ahead; unlike the cross-entropy it has a gradient wherever the logits have one."""
    return -margin(logits, labels)


def _gradient(victim: Victim, loss: Loss, x: Tensor, labels: Tensor) -> Tensor:
    images = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(victim.logits(images), labels).sum(), images)
    return gradient


def _ascend(
    victim: Victim, loss: Loss, batches: list[tuple[Tensor, ...]], threat: ThreatModel, unit: float = 1.0
) -> tuple[Images, NDArray[np.float32]]:
    """The last iterates of PGD from the images themselves, and the loss after 0 to `steps` steps, `(steps + 1, N)`, of
    logits measured in `unit`."""
    found, losses = [], []
    for x, labels in batches:
        passed: list[Tensor] = []

        def noted(images: Tensor, labels: Tensor = labels, passed: list[Tensor] = passed) -> Tensor:
            logits = victim.logits(images)
            value = loss(logits, labels)
            passed.append(value.detach() if unit == 1 else loss(logits.detach() / unit, labels))
            return value

        x_adv = inner_max(noted, x, x, threat)
        with torch.no_grad():
            noted(x_adv)
        found.append(x_adv.cpu().numpy())
        losses.append(torch.stack(passed).cpu().numpy())
    return np.concatenate(found), np.concatenate(losses, axis=1)


def _left(predictor: Predictor, x: Images, labels: NDArray[np.int64], batch_size: int) -> NDArray[np.bool_]:
    predicted, finite = judge(predictor, x, batch_size)
    held: NDArray[np.bool_] = (predicted == labels) & finite
    return held


def _searched(victim: Victim, x: Images, batch_size: int) -> NDArray[np.int64]:
    """Predictions `(N,)` of the module that gives the gradients."""
    with torch.no_grad():
        parts = [
            victim.logits(torch.from_numpy(x[at : at + batch_size]).to(victim.device))
            for at in range(0, len(x), batch_size)
        ]
    return np.asarray(torch.cat(parts).argmax(dim=1).cpu().numpy())


def _share(where: NDArray[np.bool_] | Tensor) -> float:
    return float(where.sum()) / len(where)
