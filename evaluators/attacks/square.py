"""The Square attack, by its authors' package, on the deployed runtime's answers alone."""

from typing import Any, Literal

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from pyautoattack.square import SquareAttack
from torch import Tensor


class AuthorsSquare(EvasionAttack):  # type: ignore[misc]
    """Random search with squares (Andriushchenko et al., ECCV 2020, https://arxiv.org/abs/1912.00049).

    It asks `estimator.predict` and nothing else, so that a gradient which hides weakness (rounding, saturation) does
    not hide it from this attack.

    Args:
        estimator: any classifier of ART that predicts.
        norm: "linf" or "l2".
        eps: radius, a fraction of 1.
        queries: at most so many predictions an image; the paper and AutoAttack use 5,000.
        seed: of its draws.
        batch_size: images at a time. The package draws for a batch at once, so results depend on it.
    """

    attack_params = (*EvasionAttack.attack_params, "norm", "eps", "queries", "seed", "batch_size")
    _estimator_requirements = (PyTorchClassifier,)

    def __init__(
        self,
        estimator: PyTorchClassifier,
        *,
        norm: Literal["linf", "l2"] = "linf",
        eps: float = 8 / 255,
        queries: int = 5000,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator=estimator)
        self.norm, self.eps, self.queries, self.seed, self.batch_size = norm, eps, queries, seed, batch_size

    def generate(self, x: NDArray[Any], y: NDArray[Any] | None = None, **kwargs: Any) -> NDArray[np.float32]:
        """Adversarial images, float32 of x's shape.

        Args:
            x: images `(N, C, H, W)` in [0, 1].
            y: true labels, `(N,)` or one-hot `(N, K)`; None takes the estimator's predictions.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if y is None:
            y = self.estimator.predict(x, batch_size=self.batch_size)
        labels = torch.from_numpy((np.argmax(y, axis=1) if y.ndim == 2 else y).astype(np.int64))
        attack = SquareAttack(
            self._answers,
            norm={"linf": "Linf", "l2": "L2"}[self.norm],
            eps=self.eps,
            n_queries=self.queries,
            seed=self.seed,
            device=torch.device("cpu"),
        )
        attack.return_all = False
        found = x.copy()
        with torch.random.fork_rng():  # the package seeds torch's global generator
            for start in range(0, len(x), self.batch_size):
                part = slice(start, start + self.batch_size)
                found[part] = attack.perturb(torch.from_numpy(x[part]), labels[part]).numpy()
        return found

    def _answers(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.estimator.predict(x.numpy(), batch_size=self.batch_size))
