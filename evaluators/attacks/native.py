"""What our own attacks share: ART's interface outside, torch inside, draws that belong to images."""

from abc import abstractmethod
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.classification.classifier import ClassifierMixin
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from numpy.typing import NDArray
from torch import Tensor, nn

from dgad_tk.draws import Draws
from dgad_tk.fold import folded
from dgad_tk.heap import kept
from evaluators.attacks.arguments import check_eps, images_of_caller, index_of_caller, labels_of_caller
from evaluators.ball import Norm
from evaluators.estimators import Counted, PredictorBlackBox, PredictorClassifier


class Source(Protocol):
    """Where an attack's random numbers come from: `dgad_tk.draws.Draws`, or a recorded stream in a test."""

    def uniform(self, purpose: str, shape: tuple[int, ...], *, index: Tensor, epoch: int = 0, step: int = 0) -> Tensor:
        """Uniform on [0, 1), float32 `(len(index), *shape)`."""
        ...

    def normal(self, purpose: str, shape: tuple[int, ...], *, index: Tensor, epoch: int = 0, step: int = 0) -> Tensor:
        """Standard normal, float32 `(len(index), *shape)`."""
        ...

    def integers(
        self, purpose: str, shape: tuple[int, ...], *, low: int, high: int, index: Tensor, epoch: int = 0, step: int = 0
    ) -> Tensor:
        """Integers in [low, high), int64 `(len(index), *shape)`."""
        ...


class Victim:
    """What an attack asks of an estimator: logits with gradients, and answers without.

    A torch module is asked as a frozen copy with BatchNorm folded and weights channels-last: the same function in less
    time. ART's preprocessing holds for it.

    Args:
        estimator: any classifier of ART. `logits` needs one with a torch module.

    Attributes:
        by_module: torch is the deployed runtime, so that `logits` answers as it does.
        quantised: the runtime's logits come in steps, so that small gains do not show.
    """

    def __init__(self, estimator: ClassifierMixin) -> None:
        self.estimator = estimator
        self.device = getattr(estimator, "device", torch.device("cpu"))
        self.module: nn.Module | None = None
        self.by_module = self.quantised = False
        # ART standardises by mean 0 and deviation 1 where nothing is asked for, which costs a small net a tenth.
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
        """Logits `(N, K)` of images `(N, C, H, W)`, with a graph if `x` asks for one."""
        assert self.module is not None
        images = x
        if self._preprocessed:
            images, _ = self.estimator._apply_preprocessing(x, y=None, fit=False, no_grad=False)
        logits: Tensor = self.module(images)
        if x.requires_grad and not logits.requires_grad:  # by a comparison, say: the gradient is 0, and checks tell
            logits = logits + 0 * x.flatten(1).sum(dim=1, keepdim=True)
        return logits

    @torch.no_grad()
    def answers(self, x: Tensor) -> Tensor:
        """Logits `(N, K)` without a graph, on x's device: by the deployed runtime where that is not torch itself."""
        if self.by_module:
            return self.logits(x)
        return torch.from_numpy(np.asarray(self.estimator.predict(x.cpu().numpy()), dtype=np.float32)).to(x.device)


def _changes_nothing(operation: object) -> bool:
    standard = isinstance(operation, StandardisationMeanStd | StandardisationMeanStdPyTorch)
    return standard and bool(np.all(operation.mean == 0) and np.all(operation.std == 1))  # type: ignore[attr-defined]


class NativeAttack(EvasionAttack):  # type: ignore[misc]
    """An attack of our own: a subclass writes `search`, on tensors, and works on any suitable estimator of ART.

    Args:
        estimator: with a torch module, unless the attack says that predictions are enough.
        norm: of the ball, or of what a min-norm attack minimises.
        eps: radius, a fraction of 1; a min-norm attack has none.
        seed: of all draws. They belong to (seed, image index, step), so that neither batches nor shards change them.
        batch_size: images at a time.

    Attributes:
        draws: the source of random numbers; a test may put in its own.
        warnings: what the last `generate` wants its reader to know, a sentence each.
    """

    attack_params = (*EvasionAttack.attack_params, "norm", "eps", "seed", "batch_size")
    batches_itself: ClassVar[bool] = False
    """`search` gets all images at once and keeps its own batches full, for attacks whose images leave early."""
    _estimator_requirements: ClassVar[tuple[type, ...]] = (PyTorchClassifier,)

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
        check_eps(norm, eps)
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {batch_size}")
        self.draws: Source = Draws(seed)
        self.warnings: list[str] = []
        self.victim = Victim(estimator)

    def generate(
        self,
        x: NDArray[Any],
        y: NDArray[Any] | None = None,
        *,
        index: NDArray[np.int64] | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Adversarial images, float32 of x's shape: what the search found best, whether or not it breaks the model.

        Args:
            x: images `(N, C, H, W)` of floats in [0, 1].
            y: true labels, whole numbers `(N,)` or `(N, 1)`, or one-hot `(N, K)`; None takes the estimator's
                predictions.
            index: dataset indices `(N,)` that the draws belong to; None counts from 0.

        Raises:
            ValueError: images or labels that are none of these.
        """
        check_eps(self.norm, self.eps)  # ART's set_params may have changed it
        x = images_of_caller(self.estimator, x)
        self.warnings = []
        if len(x) == 0:
            return x
        labels, index = labels_of_caller(self.estimator, x, y), index_of_caller(len(x), index)
        device, found = self.victim.device, x.copy()
        size = len(x) if self.batches_itself else self.batch_size
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            tensors = (torch.from_numpy(each[part]).to(device) for each in (x, labels, index))
            with kept():
                found[part] = self.search(*tensors).detach().cpu().numpy()
        return found

    @abstractmethod
    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Adversarial images for one batch.

        Args:
            x: float32 `(N, C, H, W)` in [0, 1].
            y: int64 `(N,)`.
            index: int64 `(N,)`, what the draws belong to.
        """
