"""The answers of the deployed runtime, and whether the module that gives gradients is the same function."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dgad_tk.answers.spread import apart, leeway, without_rounding_of_probabilities
from dgad_tk.artifacts.predictor import Images, Logits, Predictor
from dgad_tk.common import UserError
from dgad_tk.data import Split

TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2}
"""Largest difference of logits, relative to how far apart they are. Half precision has relative steps of 1e-3, and
about ten of them add up in a runtime that rounds after every layer."""
AGREEMENTS = {"fp32": 0.995, "fp16": 0.99, "int8": 0.99}
"""Smallest share of equal predictions. Integer logits are often equal, or one step apart."""

REPEATS = 8
"""Repeated answers that are compared with the first one. A model with few random outcomes often repeats one."""


class Judged(NamedTuple):
    """The deployed runtime's answers to N images.

    Attributes:
        predicted: the first index of the largest logit, int64 `(N,)`.
        finite: where all logits are finite, bool `(N,)`.
        confidence: probability of the predicted class, float32 `(N,)`; NaN where the logits are not finite.
    """

    predicted: NDArray[np.int64]
    finite: NDArray[np.bool_]
    confidence: NDArray[np.float32]

    def right(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where the answer is the label and finite, bool `(N,)`."""
        return np.asarray((self.predicted == labels) & self.finite)


@dataclass(frozen=True)
class Twin:
    """How far the module that gives gradients is from the runtime, on clean images.

    Attributes:
        max_abs_diff: largest difference of two logits.
        argmax_agreement: share of equal predictions.
    """

    max_abs_diff: float
    argmax_agreement: float


def judge(predictor: Predictor, images: Images, batch_size: int) -> Judged:
    """Ask the deployed runtime, `batch_size` images at a time."""
    logits = logits_of(predictor, images, batch_size)
    sure = confidences(logits, may_be_probabilities=not predictor.one_number)
    return Judged(logits.argmax(axis=1), np.asarray(np.isfinite(logits).all(axis=1)), sure)


def confidences(logits: Logits, *, may_be_probabilities: bool = True) -> NDArray[np.float32]:
    """The largest probability of each image, `(N, K)` to float32 `(N,)`; NaN where the logits are not finite.

    Args:
        may_be_probabilities: take rows that are not negative and sum to 1 for probabilities, as they are. The logits
            (0, 1) of a file with one number per image are none.
    """
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    known = np.where(finite[:, None], logits, 0.0).astype(np.float64)
    highest = known.max(axis=1, initial=-np.inf)
    softmax = 1.0 / np.exp(known - highest[:, None]).sum(axis=1)
    done = (known >= 0).all(axis=1) & (np.abs(known.sum(axis=1) - 1) < 1e-4) & may_be_probabilities
    return np.where(finite, np.where(done, highest, softmax), np.nan).astype(np.float32)


def logits_of(predictor: Predictor, images: Images, batch_size: int) -> Logits:
    """The deployed runtime's logits `(N, K)`, `batch_size` images at a time."""
    starts = range(0, len(images), batch_size)
    parts = [predictor.predict(np.ascontiguousarray(images[at : at + batch_size])) for at in starts]
    return np.concatenate(parts) if parts else np.zeros((0, predictor.classes), np.float32)


def images_of(split: Split, positions: slice | NDArray[np.int64]) -> Images:
    """Images as a model takes them, float32 `(N, C, H, W)` in [0, 1]."""
    # Training divides in float32 too, so that both see the same pixels to the last bit.
    return np.divide(split.take(positions), np.float32(255), dtype=np.float32)


def check_images(predictor: Predictor, split: Split) -> None:
    """Check that the model fits these images.

    Raises:
        UserError: no images, another shape, or a label that the model has no class for.
    """
    if len(split) == 0:
        raise UserError("there are no images to evaluate", hint="choose another --split or a larger --limit")
    shape = split.base.shape[1:]
    if shape != predictor.input_shape:
        hint = "name the dataset it was trained on with --dataset; an image folder is read at the size of the file"
        if predictor.input_shape[0] == 1 != shape[0]:
            hint += ", and as grey for one channel (--dataset imagefolder)"
        raise UserError(
            f"the model takes images of shape {predictor.input_shape} (C, H, W), the dataset has {shape}", hint=hint
        )
    for label in (split.labels.min(), split.labels.max()):
        if not 0 <= label < predictor.classes:
            raise UserError(
                f"the model has {predictor.classes} classes, the dataset has a label {label}",
                hint="take out the images of classes that it does not know, or name its own dataset with --dataset",
            )


def compare_twin(predictor: Predictor, split: Split, clean_finite: NDArray[np.bool_], batch_size: int) -> Twin | None:
    """Compare runtime and module on the first images with finite answers; None for a model without gradients.

    Args:
        clean_finite: where all clean logits of the runtime are finite, bool `(len(split),)`.

    Raises:
        UserError: no image has finite logits; or the two differ by more than rounding, and by more than the runtime's
            answers differ among themselves.
    """
    chosen = np.flatnonzero(clean_finite)[:batch_size]
    if len(chosen) == 0:
        raise UserError(
            f"'{predictor.path}' answers every clean image with logits that are not finite",
            hint="there is nothing to attack: look at its weights and how it was exported",
        )
    if predictor.module is None:
        return None
    x = images_of(split, chosen)
    device = next((value.device for value in predictor.module.state_dict().values()), torch.device("cpu"))
    with torch.no_grad():
        logits = predictor.module(torch.from_numpy(x).to(device))
        answers = logits if predictor.finish is None else predictor.finish(logits)
    ours, theirs = answers.cpu().numpy(), predictor.predict(x)
    gaps = apart(without_rounding_of_probabilities(ours, theirs, predictor.answer_error), theirs)
    agreement = float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    tolerances, exceptions = allowed(predictor, theirs)
    close = bool((gaps <= tolerances).all()) and round((1 - agreement) * len(x)) <= exceptions
    # A model with random answers differs from itself too. That is not a defect of the conversion; a check tells it.
    if not close and not any((apart(predictor.predict(x), theirs) > tolerances).any() for _ in range(REPEATS)):
        worst = int(np.argmax(gaps - tolerances))
        raise UserError(
            f"'{predictor.path}': gradients would come from a module that differs from the runtime: max |difference| "
            f"{gaps[worst]:.3g} of logits up to {np.abs(theirs[worst]).max():.3g} where {tolerances[worst]:.3g} is "
            f"allowed, {agreement:.1%} equal predictions",
            hint="this is a defect of the conversion; please report it with the file",
        )
    return Twin(float(gaps.max()), agreement)


def allowed(predictor: Predictor, logits: Logits) -> tuple[NDArray[np.float64], float]:
    """How much the module's logits may differ from the runtime's `logits`, per image `(N,)`; and for how many images
    the predictions may differ."""
    precision = predictor.precision
    exceptions = max(1.0, (1 - AGREEMENTS[precision]) * len(logits))  # one near tie is no defect in a small batch
    squashed = predictor.finish is not None
    return leeway(logits, precision, TOLERANCES, step=predictor.logit_step, squashed=squashed), exceptions
