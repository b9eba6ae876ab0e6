"""Parity of an exported file with its source. An export is not done until it has been compared.

Logits may be scaled and shifted without changing an answer. So a difference is divided by the spread of an image's
logits, the largest less the smallest, and never by their size. An image whose logits are nearly equal gets the spread
of a typical one: its rounding errors come from values as large as those of other images.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dgad_tk.answers.spread import typical_spread, yardstick
from dgad_tk.artifacts.predictor import Images, Logits, Predictor
from dgad_tk.artifacts.record import Artifact, threat_of
from dgad_tk.ascent.pgd import pgd_on

BATCHES = (1, 2, 7)
"""The first images of a set are run in batches of these sizes, the rest in batches of REST."""
REST = 64
TIE = 1e-4
"""Two logits that are this close, relative to the spread of an image's logits, are a tie: either class is right."""
LOST = 64 * float(np.finfo(np.float32).eps)
"""If an image's logits are this close, relative to the largest, float32 has too few steps between them to compare."""


@dataclass(frozen=True)
class Tolerance:
    """How far an exported file may be from its source.

    Attributes:
        relative: max|difference| <= relative * spread of the logits of each image; None if logits differ by design,
            and only the predictions are judged.
        agreement: least share of equal predictions among images without a tie, on clean and on PGD images each.
        survival: least share of the adversarial examples that stay adversarial.
    """

    relative: float | None
    agreement: float
    survival: float


EXACT = Tolerance(relative=1e-4, agreement=1.0, survival=1.0)
"""The same arithmetic in another order: float32 rounds at 1.2e-7, which a hundred layers raise to about 1e-5."""
HALF = Tolerance(relative=2e-2, agreement=0.99, survival=0.99)
"""float16 rounds at 1e-3 in each layer, in either direction; an overflow or a wrong layer is far beyond this."""
QUANTISED = Tolerance(relative=None, agreement=0.95, survival=0.9)
"""8 bits change most logits and a few answers. A network that was calibrated on images like those it is asked about
keeps 97 % of its answers and more. Much less means ranges that do not fit, or a wrong layer."""


@dataclass(frozen=True)
class SourceAnswers:
    """What a source answered to the images that its exports are compared on.

    Attributes:
        images: by name of the set, float32 `(N, C, H, W)`: clean (where there are images), pgd (made from these, or
            from noise), noise, black and white.
        logits: of the source, by the same names.
        origin: name of the set that `pgd` was made from.
    """

    images: Mapping[str, Images]
    logits: Mapping[str, Logits]
    origin: str


@dataclass(frozen=True)
class SetParity:
    """What the comparison on one set of images found.

    Attributes:
        max_abs_diff: largest difference of any logit.
        mean_abs_diff: mean difference over all logits.
        relative: largest difference of any image over the spread of that image's logits.
        agreement: share of equal predictions among images without a tie; among all images if all are ties.
        compared: number of images.
        told_apart: whether float32 has enough steps between the logits of an image. Under a large common offset it
            has not: both sides are rounded to the same few numbers, whatever they compute.
    """

    max_abs_diff: float
    mean_abs_diff: float
    relative: float
    agreement: float
    compared: int
    told_apart: bool = True


@dataclass(frozen=True)
class Parity:
    """What the comparison of an exported file with its source found.

    Attributes:
        sets: by name.
        judged: the sets whose predictions count: the images and the PGD images made from them.
        adversarial: number of PGD images that fool the source.
        survival: share of those that fool the exported file too, 1 if there are none.
        tolerance: that the file is held to.
        not_judged: what the comparison does not show on this runtime; empty for nothing.
    """

    sets: Mapping[str, SetParity]
    judged: tuple[str, ...]
    adversarial: int
    survival: float
    tolerance: Tolerance
    not_judged: str = ""

    @property
    def failures(self) -> list[str]:
        """What is beyond the tolerance, in words."""
        allowed, found = self.tolerance, []
        for name, each in self.sets.items():
            if not np.isfinite(each.relative):
                found.append(f"on {name} images it does not answer with one row of finite logits per image")
            elif name in self.judged and not each.told_apart:
                found.append(
                    f"on {name} images the source's logits are too near each other for float32 to tell them apart"
                )
            elif allowed.relative is not None and each.relative > allowed.relative:
                found.append(
                    f"on {name} images logits differ by up to {each.max_abs_diff:.2g}, "
                    f"{each.relative:.2g} relative, allowed {allowed.relative:g}"
                )
            if name in self.judged and each.agreement < allowed.agreement:
                found.append(
                    f"{each.agreement:.1%} equal predictions on {each.compared} {name} images, "
                    f"expected {allowed.agreement:.0%}"
                )
        if self.survival < allowed.survival:
            found.append(
                f"{self.survival:.1%} of {self.adversarial} adversarial examples stay adversarial, "
                f"expected {allowed.survival:.0%}"
            )
        return found

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def worst(self) -> str:
        """The set on which the logits differ most."""
        return max(self.sets, key=lambda name: np.nan_to_num(self.sets[name].relative, nan=np.inf))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "sets": {name: asdict(each) for name, each in self.sets.items()}, "passed": self.passed}


def ask_source(source: nn.Module, artifact: Artifact, images: Images | None) -> SourceAnswers:
    """Run `source` on what its exports will be compared on.

    Args:
        source: in eval mode, on the CPU.
        artifact: says the shape of its input, and the threat that the PGD images are made for.
        images: float32 `(N, C, H, W)` in [0, 1], N >= 10; None uses uniform noise in their place.
    """
    need = sum(BATCHES)
    shape = (need, *artifact.input_shape)
    noise = np.random.default_rng(0).random(shape, dtype=np.float32)
    origin = "noise" if images is None else "clean"
    start = noise if images is None else images
    if len(start) < need:
        raise ValueError(f"expected at least {need} images, got {len(start)}")
    sets = {origin: start, "pgd": pgd_on(source, start, threat_of(artifact))}
    sets |= {"noise": noise, "black": np.zeros(shape, dtype=np.float32), "white": np.ones(shape, dtype=np.float32)}

    def predict(batch: Images) -> Logits:
        with torch.no_grad():
            logits: Logits = source(torch.from_numpy(batch)).numpy()
        return logits

    return SourceAnswers(sets, {name: _in_batches(predict, each) for name, each in sets.items()}, origin)


def verify(asked: SourceAnswers, exported: Predictor, tolerance: Tolerance) -> Parity:
    """Compare `exported` with the source that made `asked`."""
    with without_tf32():
        answers = {name: _in_batches(exported.predict, images) for name, images in asked.images.items()}
    clean, attacked = asked.logits[asked.origin], asked.logits["pgd"]
    usual = typical_spread(clean)
    sets = {name: compare_logits(asked.logits[name], answers[name], usual) for name in asked.images}
    predicted = clean.argmax(axis=1)
    fooled = (attacked.argmax(axis=1) != predicted) & ~_ties(attacked, usual)
    still = _predictions(answers["pgd"], len(attacked)) != predicted
    survival = float(still[fooled].mean()) if fooled.any() else 1.0
    return Parity(sets, (asked.origin, "pgd"), int(fooled.sum()), survival, tolerance)


def compare_logits(reference: Logits, other: Logits, usual: float = 0.0) -> SetParity:
    """Parity of two sets of logits `(N, K)` for the same images.

    Args:
        usual: least spread that is taken for an image; that of a typical image of these if it is larger.
    """
    finite = np.isfinite(other).all() and np.isfinite(reference).all()
    if reference.shape != other.shape or not finite:
        return SetParity(float("nan"), float("nan"), float("nan"), 0.0, len(reference))
    difference = np.abs(reference.astype(np.float64) - other)
    clear = ~_ties(reference, usual)
    equal = reference.argmax(axis=1) == other.argmax(axis=1)
    return SetParity(
        float(difference.max()),
        float(difference.mean()),
        float((difference.max(axis=1) / _scales(reference, usual)).max()),
        float(equal[clear].mean() if clear.any() else equal.mean()),
        len(reference),
        typical_spread(reference) > LOST * float(np.abs(reference).max()),
    )


@contextmanager
def without_tf32() -> Iterator[None]:
    """No TF32 on CUDA: it moves logits by 1e-3, ten times what an export may."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def _in_batches(predict: Callable[[Images], Logits], images: Images) -> Logits:
    """Logits of `images`, run in batches of 1, 2, 7 and then REST."""
    cuts = [*np.cumsum(BATCHES), *range(sum(BATCHES) + REST, len(images), REST)]
    return np.concatenate([predict(part) for part in np.split(images, cuts) if len(part)])


def _predictions(logits: Logits, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Predicted classes; -1, which is no class, where the answer is not one row of finite numbers per image."""
    if logits.ndim != 2 or len(logits) != count:
        return np.full(count, -1)
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)


def _ties(logits: Logits, usual: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    top = np.sort(logits.astype(np.float64), axis=1)
    ties: np.ndarray[Any, np.dtype[np.bool_]] = top[:, -1] - top[:, -2] <= TIE * _scales(logits, usual)
    return ties


def _scales(logits: Logits, usual: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What differences are held against, for each image; above 0, so that logits all equal are no special case."""
    return np.asarray(np.maximum(yardstick(logits), max(usual, float(np.finfo(np.float32).tiny))))
