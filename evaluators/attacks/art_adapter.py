"""What one of ART's own attacks needs around it: labels in its meaning of them, and draws that can be repeated."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator
from numpy.typing import NDArray
from torch import nn

from evaluators.attacks.arguments import images_of_caller, index_of_caller, labels_of_caller
from evaluators.estimators import PredictorClassifier, to_estimator

Labels = Literal["true", "ignored", "target"]

Y_MEANS: dict[Labels, str] = {
    "true": "true labels, moved away from",
    "ignored": "nothing: it moves away from the model's own prediction",
    "target": "classes to reach: it is given the runner-up of the true label",
}


class ArtsOwn(EvasionAttack):  # type: ignore[misc]
    """One of ART's attacks with labels in the meaning it has for them, and draws that belong to its images.

    ART draws for all images at once from global generators. They are seeded by the seed and the images' indices, and
    put back afterwards, so that the same images in the same company get the same answer.

    Args:
        attack: ART's, ready to run.
        estimator: of the model under attack, with logits.
        y: what the attack takes labels for.
        seed: of its draws.
    """

    attack_params = (*EvasionAttack.attack_params, "y", "seed")
    _estimator_requirements = (BaseEstimator, ClassifierMixin)

    def __init__(self, attack: EvasionAttack, estimator: ClassifierMixin, *, y: Labels = "true", seed: int = 0) -> None:
        super().__init__(estimator=estimator)
        self.attack, self.y, self.seed = attack, y, seed

    def generate(
        self,
        x: NDArray[Any],
        y: NDArray[Any] | None = None,
        *,
        index: NDArray[np.int64] | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Adversarial images, float32 of x's shape.

        Args:
            x: images `(N, C, H, W)` in [0, 1].
            y: true labels, `(N,)`, `(N, 1)` or one-hot `(N, K)`, whatever they mean to ART; None takes the predictions.
            index: dataset indices `(N,)` that the draws belong to; None counts from 0.

        Raises:
            ValueError: images or labels that are none of these.
        """
        x = images_of_caller(self.estimator, x).copy()  # since some of ART's write into what they get
        if len(x) == 0:
            return x
        labels = labels_of_caller(self.estimator, x, y)
        if self.y == "target":
            logits = np.array(self.estimator.predict(x))
            logits[np.arange(len(x)), labels] = -np.inf
            labels = logits.argmax(axis=1)
        classes = np.eye(self.estimator.nb_classes, dtype=np.float32)
        given = None if self.y == "ignored" else classes[labels]
        entropy = [self.seed & 0xFFFFFFFF, *index_of_caller(len(x), index).tolist()]
        # What a division by zero makes of an image is NaN, and such an image is no success.
        with seeded(int(np.random.SeedSequence(entropy).generate_state(1)[0])), np.errstate(all="ignore"):
            return np.asarray(self.attack.generate(x, given), dtype=np.float32)


class _Derived(np.random.RandomState):
    """A generator whose seed, where none is given, comes from the global one and not from the operating system."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)  # noqa: NPY002


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of NumPy, Python and torch, and put them back afterwards.

    NumPy's legacy ones, since ART draws from those. HopSkipJump and the Boundary attack start from
    `np.random.RandomState()`, which no seed reaches; it derives from the global generator meanwhile.
    """
    of_numpy, of_python, fresh = np.random.get_state(), random.getstate(), np.random.RandomState  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        np.random.RandomState = _Derived  # type: ignore[misc]
        try:
            yield
        finally:
            np.random.RandomState = fresh  # type: ignore[misc]
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


def with_probabilities(estimator: PredictorClassifier) -> PredictorClassifier:
    """The same model with a softmax behind its logits, in the runtime's answers and in the module."""
    predict = estimator.predictor.predict

    def probabilities(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return torch.from_numpy(np.asarray(predict(images))).softmax(dim=1).numpy()

    module = nn.Sequential(estimator.model, nn.Softmax(dim=1))
    return to_estimator(replace(estimator.predictor, predict=probabilities), module=module)
