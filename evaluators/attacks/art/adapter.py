"""ART's own attacks as ours: labels in the meaning that each has for them, and draws that can be repeated."""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import art.attacks.evasion
import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator
from numpy.typing import NDArray
from torch import nn

from evaluators.attacks.array_file import ArrayFile
from evaluators.attacks.result import SearchingAttack, SearchResult
from evaluators.attacks.spec import Budget, Estimator
from evaluators.target.estimators import PredictorClassifier, searched_by, to_estimator

Meaning = Literal["true", "ignored", "target"]
"""What labels mean to an attack of ART. "true": the true labels, to move away from. "ignored": it moves away from the
model's own prediction. "target": the classes to reach, for which it is given the most likely wrong class."""


@dataclass(frozen=True)
class ArtBuild:
    """Builds one of ART's attacks for a row of ATTACKS.

    Names of parameters are ART's, but for `relative_step`, the step as a share of eps.

    Attributes:
        cls: name of ART's class.
        y: what labels mean to it.
        fixed: arguments that no user changes.
        probabilities: it wants probabilities, not logits.
        more: changes the arguments, given the estimator.
    """

    cls: str
    y: Meaning = "true"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    probabilities: bool = False
    more: Callable[[ClassifierMixin, dict[str, Any]], dict[str, Any]] | None = None

    def __call__(self, estimator: Estimator, budget: Budget, params: Mapping[str, Any]) -> "ArtsOwn":
        cls = getattr(art.attacks.evasion, self.cls)
        chosen = dict(params)
        offered = {
            "norm": {"linf": np.inf, "l2": 2}[budget.norm],
            "eps": budget.eps,
            "eps_step": chosen.pop("relative_step", 1.0) * budget.eps,
            "batch_size": budget.batch_size,
            "verbose": False,
        }
        accepted = inspect.signature(cls).parameters
        arguments = {key: value for key, value in offered.items() if key in accepted} | chosen | dict(self.fixed)

        def ready(asked: Estimator) -> EvasionAttack:
            own = self.more(asked, dict(arguments)) if self.more else arguments
            return cls(with_probabilities(asked) if self.probabilities else asked, **own)

        asked = searched_by(estimator)
        again = None if asked is estimator else partial(ready, estimator)
        return ArtsOwn(ready(asked), estimator, y=self.y, seed=budget.seed, again=again)


class ArtsOwn(SearchingAttack):
    """One of ART's attacks, with labels in the meaning it has for them, and draws that can be repeated.

    ART draws for all images at once from global generators. They are seeded by the seed and the images' indices, and
    restored afterwards. So the same batch of images gets the same answer.

    Args:
        attack: ART's, ready to run.
        estimator: of the model under attack, with logits.
        y: what labels mean to the attack.
        seed: of its draws.
        again: makes the attack anew on `estimator`, where `attack` asks something faster. Images that only the faster
            one gets wrong are attacked again with it.
    """

    attack_params = (*EvasionAttack.attack_params, "y", "seed")
    _estimator_requirements = (BaseEstimator, ClassifierMixin)

    def __init__(
        self,
        attack: EvasionAttack,
        estimator: ClassifierMixin,
        *,
        y: Meaning = "true",
        seed: int = 0,
        again: Callable[[], EvasionAttack] | None = None,
    ) -> None:
        super().__init__(estimator=estimator)
        self.attack, self.y, self.seed, self.again = attack, y, seed, again

    def searched(
        self, x: NDArray[np.float32], y: NDArray[np.int64], index: NDArray[np.int64], halfway: ArrayFile
    ) -> SearchResult:
        found = self._found(self.attack, x, y, index)
        if self.again is not None:
            left = ~_missed(self.estimator, found, y) & _missed(self.attack.estimator, found, y)
            if left.any():
                found[left] = self._found(self.again(), x[left], y[left], index[left])
        return SearchResult(found)

    def _found(
        self, attack: EvasionAttack, x: NDArray[np.float32], y: NDArray[np.int64], index: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if self.y == "target":
            logits = np.array(self.estimator.predict(x))
            logits[np.arange(len(x)), y] = -np.inf
            y = logits.argmax(axis=1)
        labels = None if self.y == "ignored" else np.eye(self.estimator.nb_classes, dtype=np.float32)[y]
        entropy = [self.seed & 0xFFFFFFFF, *index.tolist()]
        # A division by zero makes an image NaN, which is replaced by the clean image later.
        with seeded(int(np.random.SeedSequence(entropy).generate_state(1)[0])), np.errstate(all="ignore"):
            return np.array(attack.generate(x.copy(), labels), dtype=np.float32)  # some write into their input


def _missed(estimator: ClassifierMixin, images: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the answer is not `y`, or is not finite, bool `(N,)`."""
    answers = np.asarray(estimator.predict(images))
    return np.asarray((answers.argmax(axis=1) != y) | ~np.isfinite(answers).all(axis=1))


class _Derived(np.random.RandomState):
    """A generator whose default seed comes from the global generator and not from the operating system."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(np.random.randint(2**31) if seed is None else seed)  # noqa: NPY002


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of NumPy, Python and torch, and restore them afterwards.

    ART draws from NumPy's legacy generators. HopSkipJump and the Boundary attack use `np.random.RandomState()`, which
    ignores the global seed; inside the `with` it takes its seed from the global generator.
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
    """The same model with a softmax after its logits, in the runtime's answers and in the module."""
    predict = estimator.predictor.predict

    def probabilities(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return torch.from_numpy(np.asarray(predict(images))).softmax(dim=1).numpy()

    module = nn.Sequential(estimator.model, nn.Softmax(dim=1))
    return to_estimator(replace(estimator.predictor, predict=probabilities, search=None), module=module)
