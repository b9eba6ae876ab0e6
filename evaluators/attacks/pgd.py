"""Projected gradient descent and its one-step case, seeded per image."""

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import Tensor

from dgad_tk.batches import draw_noise
from dgad_tk.config import ThreatModel
from dgad_tk.draws import Draws
from dgad_tk.inner_max import Init, inner_max, start_point
from dgad_tk.losses import cross_entropy


class ProjectedGradient(EvasionAttack):  # type: ignore[misc]
    """PGD on the cross-entropy (Madry et al., ICLR 2018), on any ART estimator that is a `PyTorchClassifier`.

    The last iterate counts, as in the evaluations of the DGAD paper. Unlike ART's own, the random start of an image
    depends on the seed and the image's index alone, so that batch size and sharding change nothing.

    Args:
        estimator: with a torch module.
        norm: "linf" or "l2".
        eps: radius, a fraction of 1.
        step_size: of each step.
        steps: number of steps.
        init: uniform start in the ball, or none.
        restarts: number of starts; an image that a start has broken is left alone.
        seed: of the starts.
        batch_size: images at a time.
    """

    attack_params = (*EvasionAttack.attack_params, "norm", "eps", "step_size", "steps", "init", "restarts", "seed")
    _estimator_requirements = (PyTorchClassifier,)

    def __init__(
        self,
        estimator: PyTorchClassifier,
        *,
        norm: Literal["linf", "l2"] = "linf",
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
        init: Init = "uniform",
        restarts: int = 1,
        seed: int = 0,
        batch_size: int = 128,
    ) -> None:
        super().__init__(estimator=estimator)
        self.norm, self.eps, self.step_size, self.steps = norm, eps, step_size, steps
        self.init, self.restarts, self.seed, self.batch_size = init, restarts, seed, batch_size
        if restarts < 1:
            raise ValueError(f"expected restarts >= 1, got {restarts}")

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
            y: true labels, `(N,)` or one-hot `(N, K)`; None takes the estimator's predictions.
            index: dataset indices `(N,)` that the random starts belong to; None counts from 0.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if y is None:
            y = self.estimator.predict(x, batch_size=self.batch_size)
        labels = np.ascontiguousarray(np.argmax(y, axis=1) if y.ndim == 2 else y, dtype=np.int64)
        index = np.ascontiguousarray(np.arange(len(x)) if index is None else index, dtype=np.int64)
        result = x.copy()
        for start in range(0, len(x), self.batch_size):
            part = slice(start, start + self.batch_size)
            result[part] = self._batch(x[part], labels[part], index[part])
        return result

    def _batch(
        self, x: NDArray[np.float32], labels: NDArray[np.int64], index: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        device = self.estimator.device
        images, y = torch.from_numpy(x).to(device), torch.from_numpy(labels).to(device)
        indices = torch.from_numpy(index).to(device)
        best = images
        left = torch.arange(len(images), device=device)
        for restart in range(self.restarts):
            x_adv = self._ascend(images[left], y[left], indices[left], restart)
            best = best.index_copy(0, left, x_adv)
            if restart + 1 < self.restarts:
                with torch.no_grad():
                    held = self._logits(x_adv).argmax(dim=1) == y[left]
                left = left[held]
                if len(left) == 0:
                    break
        return np.asarray(best.cpu().numpy(), dtype=np.float32)

    def _ascend(self, x: Tensor, y: Tensor, index: Tensor, restart: int) -> Tensor:
        threat = ThreatModel(norm=self.norm, eps=self.eps, step_size=self.step_size, steps=self.steps)
        noise = partial(draw_noise, Draws(self.seed), "pgd", x.shape[1:], index, step=restart)
        start = start_point(x, threat, self.init, noise, clip=True)
        return inner_max(lambda z: cross_entropy(self._logits(z), y), x, start, threat)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.estimator._predict_framework(x)[0]  # with the estimator's own preprocessing
        return logits
