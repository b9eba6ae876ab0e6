"""Predictors as ART estimators: the deployed runtime predicts, a torch module gives the gradients.

Some of ART's attacks rebuild `PyTorchClassifier(model=estimator.model)`, so `.model` has to be the differentiable
module. Overriding `predict` makes the deployed runtime give the predictions.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from art.estimators.classification.classifier import ClassifierMixin
from numpy.typing import NDArray
from torch import Tensor, nn

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.common import UserError
from evaluators.target.precision import PRECISIONS, Precision


class PredictorClassifier(PyTorchClassifier):  # type: ignore[misc]
    """A Predictor as an ART classifier. It works wherever ART wants a `PyTorchClassifier`.

    `predict` asks `predictor.predict`, the deployed runtime; losses and gradients come from `predictor.module`. Images
    are `(N, C, H, W)` in [0, 1]. They are cast to contiguous float32, since some attacks of ART send float64 or views.

    Args:
        predictor: with a module.
        module: used in place of the predictor's module, such as a wrapper that counts.
        search_precision: in which our own attacks run the module (`evaluators.attacks.native.Victim`). ART's losses and
            gradients are float32 always.

    Raises:
        UserError: the predictor has no gradients.
        ValueError: an unknown precision.
    """

    def __init__(
        self, predictor: Predictor, *, module: nn.Module | None = None, search_precision: Precision = "fp32"
    ) -> None:
        if search_precision not in PRECISIONS:
            raise ValueError(f"expected a search precision of {', '.join(PRECISIONS)}, got {search_precision!r}")
        module = module or predictor.module
        if module is None:
            raise UserError(
                f"'{predictor.path}' has no differentiable module",
                hint="only gradient-free attacks can run on it",
            )
        super().__init__(
            model=module,
            loss=nn.CrossEntropyLoss(),
            input_shape=predictor.input_shape,
            nb_classes=predictor.classes,
            clip_values=(0.0, 1.0),
            preprocessing=None,  # ART's default subtracts 0 and divides by 1, and copies for each
            device_type="gpu" if torch.cuda.is_available() else "cpu",
        )
        self.predictor, self.search_precision = predictor, search_precision

    def predict(
        self, x: NDArray[Any], batch_size: int = 128, training_mode: bool = False, **kwargs: Any
    ) -> NDArray[np.float32]:
        """Logits `(N, K)` by the deployed runtime, which has no training mode."""
        if training_mode:
            raise ValueError("a deployed model has no training mode: expected training_mode=False")
        x = np.ascontiguousarray(x, dtype=np.float32)
        x, _ = self._apply_preprocessing(x, y=None, fit=False)
        parts = [self.predictor.predict(x[start : start + batch_size]) for start in range(0, len(x), batch_size)]
        logits = np.concatenate(parts) if parts else np.zeros((0, self.nb_classes), dtype=np.float32)
        return np.asarray(self._apply_postprocessing(preds=logits, fit=False), dtype=np.float32)

    def loss_gradient(
        self, x: NDArray[Any] | Tensor, y: NDArray[Any] | Tensor, training_mode: bool = False, **kwargs: Any
    ) -> NDArray[Any] | Tensor:
        """Gradient of the mean cross-entropy of the batch with respect to `x`, of x's shape."""
        x = x.float().contiguous() if isinstance(x, Tensor) else np.ascontiguousarray(x, dtype=np.float32)
        gradient: NDArray[Any] | Tensor = super().loss_gradient(x, y, training_mode=training_mode, **kwargs)
        return gradient

    def class_gradient(
        self, x: NDArray[Any], label: Any = None, training_mode: bool = False, **kwargs: Any
    ) -> NDArray[Any]:
        """Gradient of logits with respect to `x`, `(N, K, C, H, W)`, or `(N, 1, C, H, W)` of the logits `label`.

        With labels it takes one backward pass. ART's own method takes one per class among the labels, which is most of
        the cost of its Carlini & Wagner attack.

        Args:
            label: class of all images, or one class per image; None for all classes.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if label is None or training_mode:
            every: NDArray[Any] = super().class_gradient(x, label=label, training_mode=training_mode, **kwargs)
            return every
        images = torch.from_numpy(x).to(self.device).requires_grad_()
        wanted = torch.as_tensor(np.broadcast_to(np.asarray(label, dtype=np.int64), len(x)).copy(), device=self.device)
        logits, _ = self._predict_framework(images)
        # An image's logits depend on that image alone, so the gradient of the sum holds each image's gradient.
        (gradient,) = torch.autograd.grad(logits.gather(1, wanted[:, None]).sum(), images)
        return np.asarray(gradient[:, None].cpu().numpy())


class OnnxClassifier(PredictorClassifier):
    """White-box ART estimator of an ONNX file: ONNX Runtime predicts, gradients come from the file's torch twin.

        predictor = exporters.formats.load(Path("student.onnx"))
        attack = art.attacks.evasion.ProjectedGradientDescent(OnnxClassifier(predictor), eps=0.1)
        x_adv = attack.generate(x, y)

    Args:
        predictor: of an .onnx file.
    """


class PredictorBlackBox(BlackBoxClassifierNeuralNetwork):  # type: ignore[misc]
    """A Predictor without gradients as an ART classifier: the deployed runtime gives the predictions.

    Args:
        predictor: of any file.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(
            predictor.predict,
            input_shape=predictor.input_shape,
            nb_classes=predictor.classes,
            channels_first=True,
            clip_values=(0.0, 1.0),
            preprocessing=None,
        )
        self.predictor = predictor

    def predict(self, x: NDArray[Any], batch_size: int = 128, **kwargs: Any) -> NDArray[np.float32]:
        """Logits `(N, K)` by the deployed runtime. Images are cast to contiguous float32."""
        x = np.ascontiguousarray(x, dtype=np.float32)
        return np.asarray(super().predict(x, batch_size=batch_size), dtype=np.float32)


def to_estimator(
    predictor: Predictor, *, module: nn.Module | None = None, search_precision: Precision = "fp32"
) -> PredictorClassifier | PredictorBlackBox:
    """The ART estimator of a predictor of any format; a black box if there are no gradients."""
    if module is None and predictor.module is None:
        return PredictorBlackBox(predictor)
    cls = OnnxClassifier if predictor.network is None else PredictorClassifier
    return cls(predictor, module=module, search_precision=search_precision)


def searched_by(estimator: ClassifierMixin) -> ClassifierMixin:
    """The estimator that a search asks in place of `estimator`: its `predict` is the predictor's `search`.

    That is `estimator` itself where its predictor has no `search`, and where somebody has given it a `predict`, a
    preprocessing or a defence of his own.
    """
    if not isinstance(estimator, PredictorClassifier | PredictorBlackBox) or estimator.predictor.search is None:
        return estimator
    own = getattr(estimator.predict, "__func__", None) in (PredictorClassifier.predict, PredictorBlackBox.predict)
    if not own or estimator.preprocessing_operations or estimator.postprocessing_defences:
        return estimator
    predictor = replace(estimator.predictor, predict=estimator.predictor.search, search=None)
    return to_estimator(predictor, module=getattr(estimator, "model", None))


class Counted(nn.Module):
    """A module that counts the images it passes forward and backward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.forwards = 0
        self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits: Tensor = self.module(x)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
