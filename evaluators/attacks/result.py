"""The base of all attacks: ART's interface, with one typed result."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from art.attacks.attack import EvasionAttack
from numpy.typing import ArrayLike, NDArray

from dgad_tk.config.threat import Norm
from evaluators.attacks.arguments import check_ball, images_of_caller, index_of_caller, labels_of_caller
from evaluators.attacks.array_file import NOWHERE, ArrayFile


@dataclass(frozen=True)
class SearchResult:
    """What an attack found for N images.

    Attributes:
        adversarials: float32 `(N, C, H, W)`; the best found for each image, whether or not it breaks the model.
        broken_by: of an ensemble: number of the stage that broke each image, -1 for none, int8 `(N,)`.
        stages: names of an ensemble's stages.
        stage_seconds: of each stage that ran.
        warnings: sentences for the reader.
    """

    adversarials: NDArray[np.float32]
    broken_by: NDArray[np.int8] | None = None
    stages: list[str] = field(default_factory=list)
    stage_seconds: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class SearchingAttack(EvasionAttack):  # type: ignore[misc]
    """An attack of ART that answers with a `SearchResult`. `generate` gives its images alone, as ART wants it.

    Attributes:
        norm, eps: of the ball that it stays in; eps is 0 for an attack without a ball.
    """

    norm: Norm = "linf"
    eps: float = 0.0

    def run(
        self,
        x: ArrayLike,
        y: ArrayLike | None = None,
        *,
        index: ArrayLike | None = None,
        halfway: ArrayFile = NOWHERE,
    ) -> SearchResult:
        """Look for adversarial images.

        Args:
            x: images `(N, C, H, W)` of floats in [0, 1].
            y: true labels, whole numbers `(N,)` or `(N, 1)`, or one-hot `(N, K)`; None takes the estimator's
                predictions. A targeted attack takes the classes to reach.
            index: dataset indices `(N,)` that the draws belong to; None counts from 0.
            halfway: where an attack of several stages stores its progress.

        Raises:
            ValueError: images, labels or indices of another form.
        """
        if self.targeted and y is None:
            raise ValueError("a targeted attack needs the classes to reach: expected y, got None")
        check_ball(self.norm, self.eps)  # ART's set_params may have changed it
        images = images_of_caller(self.estimator, x)
        if len(images) == 0:
            return SearchResult(images)
        labels, places = labels_of_caller(self.estimator, images, y), index_of_caller(len(images), index)
        return self.searched(images, labels, places, halfway)

    @abstractmethod
    def searched(
        self, x: NDArray[np.float32], y: NDArray[np.int64], index: NDArray[np.int64], halfway: ArrayFile
    ) -> SearchResult:
        """`run` after its checks."""

    def generate(
        self,
        x: NDArray[Any],
        y: NDArray[Any] | None = None,
        *,
        index: NDArray[np.int64] | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Adversarial images, float32 of x's shape; arguments as in `run`."""
        return self.run(x, y, index=index).adversarials
