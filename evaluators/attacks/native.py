"""What our own attacks share: ART's interface outside, torch inside, and random draws that belong to images."""

import copy
import ctypes
import inspect
import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.classification.classifier import ClassifierMixin
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from numpy.typing import NDArray
from torch import Tensor, nn

from dgad_tk.ascent.folded import autocast, folded
from dgad_tk.ascent.losses import margin
from dgad_tk.config.threat import Norm
from dgad_tk.draws import Draws
from evaluators.attacks.arguments import at_least, check_ball
from evaluators.attacks.array_file import ArrayFile
from evaluators.attacks.result import SearchingAttack, SearchResult
from evaluators.target.estimators import Counted, PredictorBlackBox, PredictorClassifier, searched_by
from evaluators.target.precision import Precision

NARROW = 2**-7
"""In bf16 an image is asked about from this margin on, as a share of how far apart its logits are."""


class Victim:
    """The model under attack: logits with gradients, and the deployed runtime's answers.

    A torch module is replaced by a frozen copy with BatchNorm folded and weights channels-last: the same function in
    less time. ART's preprocessing is applied to its input.

    In bf16 the module runs under autocast to bfloat16. Images, and what is made of logits, stay float32. Such logits
    lead a search and prove nothing, so the runtime is asked about each image that they call wrong: `confirmed`.

    Args:
        estimator: any classifier of ART. `logits` needs one with a torch module.
        precision: of `logits`; by default the estimator's `search_precision`, or fp32 where it has none.

    Attributes:
        by_module: torch is the deployed runtime, so `logits` gives the runtime's answers.
        quantised: the runtime's logits come in steps, which hide small gains.
        search: gives what the runtime gives, up to rounding and faster; None where the runtime itself is asked.
    """

    def __init__(self, estimator: ClassifierMixin, precision: Precision | None = None) -> None:
        self.estimator = estimator
        asked_for: Precision = getattr(estimator, "search_precision", "fp32")
        self.precision: Precision = precision or asked_for
        self.device = getattr(estimator, "device", torch.device("cpu"))
        self.module: nn.Module | None = None
        self.by_module = self.quantised = False
        asked = searched_by(estimator)
        self.search = None if asked is estimator else asked.predict
        # By default ART standardises by mean 0 and deviation 1, which costs a tenth of a small network's time.
        self._preprocessed = not all(map(_changes_nothing, estimator.preprocessing_operations))
        if isinstance(estimator, PredictorClassifier | PredictorBlackBox):
            self.quantised = estimator.predictor.precision == "int8"
        if isinstance(estimator, PredictorClassifier):  # whose module is folded already
            self.module, self.by_module = estimator.model, estimator.predictor.network is not None
        elif isinstance(estimator, PyTorchClassifier):
            # Folded behind a counter, the copy would be counted in its place.
            self.module = estimator.model if isinstance(estimator.model, Counted) else folded(estimator.model)
            self.by_module = type(estimator).predict is PyTorchClassifier.predict

    def logits(self, x: Tensor) -> Tensor:
        """Logits `(N, K)` of images `(N, C, H, W)`, with a graph if `x` requires a gradient."""
        assert self.module is not None
        images = x
        if self._preprocessed:
            images, _ = self.estimator._apply_preprocessing(x, y=None, fit=False, no_grad=False)
        if self.precision == "fp32":
            logits: Tensor = self.module(images)
        else:
            with autocast(self.precision, x.device):
                logits = self.module(images).float()
        if x.requires_grad and not logits.requires_grad:  # such as after a comparison: the gradient is 0
            logits = logits + 0 * x.flatten(1).sum(dim=1, keepdim=True)
        return logits

    @torch.no_grad()
    def answers(self, x: Tensor) -> Tensor:
        """The deployed runtime's logits `(N, K)` up to rounding, without a graph, on x's device. They lead a search."""
        if self.search is None:
            return self.verdicts(x)
        return torch.from_numpy(self.search(x.cpu().numpy())).to(x.device)

    @torch.no_grad()
    def verdicts(self, x: Tensor) -> Tensor:
        """The deployed runtime's own logits `(N, K)`, without a graph, on x's device."""
        if self.by_module:
            return self.exact.logits(x)
        return torch.from_numpy(np.asarray(self.estimator.predict(x.cpu().numpy()), dtype=np.float32)).to(x.device)

    @property
    def exact(self) -> "Victim":
        """The same model, whose `logits` are float32."""
        if self.precision == "fp32":
            return self
        other = copy.copy(self)
        other.precision = "fp32"
        return other

    @property
    def logits_prove(self) -> bool:
        """`logits` are the runtime's own: what they get wrong needs no confirmation. A twin's are not."""
        return self.by_module and self.precision == "fp32"

    @property
    def proves(self) -> bool:
        """`answers` and `logits` are the runtime's, up to rounding: what they get wrong needs no confirmation.

        A quantised layer rounds in steps, of which a last bit can make another one.
        """
        return self.search is None and self.precision == "fp32" and not self.quantised

    def suspects(self, logits: Tensor, y: Tensor) -> Tensor:
        """Which images the runtime may get wrong, by their `logits` `(N, K)`, bool `(N,)`.

        In bf16 these are more than the images that the logits get wrong: an image that bf16 misses narrowly may be one
        that the runtime gets wrong.
        """
        missed = wrong(logits, y)
        if self.precision == "fp32":
            return missed
        reach = NARROW * (logits.amax(dim=1) - logits.amin(dim=1))
        return missed | (margin(logits, y) <= reach)

    def confirmed(self, missed: Tensor, x: Tensor, y: Tensor, *, certain: bool = True) -> Tensor:
        """Which of the images that `answers` or `logits` get wrong the runtime itself gets wrong, bool `(N,)`.

        Without this a search would leave an image alone that the deployed file still gets right.

        Args:
            missed: images to ask about, bool `(N,)`: those that are wrong, or in bf16 `suspects`.
            certain: `answers` or `logits` have been asked. False where something else has given logits.
        """
        if (certain and self.proves) or not missed.any():
            return missed
        at = missed.nonzero()[:, 0]
        return missed.index_put((at,), wrong(self.verdicts(x[at]), y[at]))


def _changes_nothing(operation: object) -> bool:
    standard = isinstance(operation, StandardisationMeanStd | StandardisationMeanStdPyTorch)
    return standard and bool(np.all(operation.mean == 0) and np.all(operation.std == 1))  # type: ignore[attr-defined]


class NativeAttack(SearchingAttack):
    """An attack of our own. A subclass writes `search`, on tensors; it then works on any suitable estimator of ART.

    Args:
        estimator: with a torch module, unless predictions are enough for the attack.
        norm: of the ball, or of the distance that is made small: "linf", "l2", "l1" or "l0".
        eps: radius of the ball, a fraction of 1.
        seed: of all draws. A draw depends on the seed, the image's index and the step, so batches do not change it.
        batch_size: images at a time.

    Raises:
        ValueError: a norm that it does not have, a radius that is none, or a batch size below 1.

    Attributes:
        draws: the source of random numbers.
        warnings: sentences for the reader of the last search.
    """

    lowers: ClassVar[bool] = True
    """Whether it searches in bf16 where the estimator says so, or in float32 always."""
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    """That it has."""
    _estimator_requirements: ClassVar[tuple[type, ...]] = (PyTorchClassifier,)

    def __init_subclass__(cls) -> None:
        """Let ART's `set_params` change every argument of the attack."""
        super().__init_subclass__()
        own = [name for name in inspect.signature(cls).parameters if name != "estimator"]
        cls.attack_params = (*EvasionAttack.attack_params, *own)

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        norm: Norm = "linf",
        eps: float = 8 / 255,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator=estimator)
        self.norm, self.eps, self.seed, self.batch_size = norm, eps, seed, batch_size
        if norm not in self.norms:
            *others, last = self.norms
            raise ValueError(f"expected norm {', '.join(others)}{' or ' if others else ''}{last}, got {norm!r}")
        check_ball(norm, eps)
        at_least(1, batch_size=batch_size)
        self.draws = Draws(seed)
        self.warnings: list[str] = []
        # Without a ball the answer is a distance, which the module's own logits decide.
        self.victim = Victim(estimator, None if eps and self.lowers else "fp32")

    def searched(
        self, x: NDArray[np.float32], y: NDArray[np.int64], index: NDArray[np.int64], halfway: ArrayFile
    ) -> SearchResult:
        self.warnings = []
        tensors = (torch.from_numpy(each).to(self.victim.device) for each in (x, y, index))
        with kept():
            found = self.search(*tensors).detach().cpu().numpy()
        return SearchResult(found, warnings=self.warnings)

    @abstractmethod
    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Adversarial images; at most `batch_size` of them pass through the model at a time.

        Args:
            x: float32 `(N, C, H, W)` in [0, 1].
            y: int64 `(N,)`.
            index: dataset indices that the draws belong to, int64 `(N,)`.
        """


def pixel_rows(images: Tensor) -> Tensor:
    """`(N, C, H, W)` to `(N, H*W*C)`, channels last as in the folded network, so that nothing is copied there."""
    return images.permute(0, 2, 3, 1).flatten(1)


def images_of_rows(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The opposite of `pixel_rows`, for images of `shape` `(C, H, W)`; the same memory."""
    channels, height, width = shape
    return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)


def wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Where the first index of the largest logit is not `y`, or a logit is not finite, bool `(N,)`."""
    return (logits.argmax(dim=1) != y) | ~logits.isfinite().all(dim=1)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEEP = 2**30
_USUAL = 2**25
"""Bytes: the largest block that glibc keeps by its own rule, and the most that older versions accept."""
_depth = 0


@contextmanager
def kept() -> Iterator[None]:
    """Keep memory that torch frees on a CPU for its next call, until the outermost `with` ends.

    By default glibc returns large blocks to the system at once, and the system clears every page that it hands out
    again. Feature maps are allocated and freed in every pass, so this costs a fifth to a third of a gradient step on a
    small network. ONNX Runtime and torch on a GPU keep their memory anyway. With another C library this does nothing.
    """
    global _depth
    _depth += 1
    if _depth == 1:
        _set_thresholds(_KEEP)
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _set_thresholds(_USUAL)
            if (libc := _libc()) is not None:
                libc.malloc_trim(0)


def _set_thresholds(size: int) -> None:
    if (libc := _libc()) is not None:
        if not libc.mallopt(_MMAP_THRESHOLD, size):
            libc.mallopt(_MMAP_THRESHOLD, _USUAL)
        libc.mallopt(_TRIM_THRESHOLD, 2 * size - 1)  # an int


@cache
def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
