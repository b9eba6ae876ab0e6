"""AutoAttack, run by its authors' own package on the module that the estimator holds."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from pyautoattack import AutoAttack
from torch import Tensor

TARGETS = 9
DLR_CLASSES = 4
"""The targeted DLR loss divides by a difference with the fourth largest logit."""


L2_SQUARE_SIDE = 5
"""The L2 Square attack starts from a grid of five squares a side."""


def ensemble(classes: int, norm: str = "linf", side: int = 32) -> tuple[str, ...]:
    """Stages of the standard ensemble that are defined for so many classes and images with this shorter side.

    Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690, section 5: APGD-CE, targeted APGD on DLR, targeted FAB,
    Square with 5,000 queries. Below four classes the targeted DLR loss is not defined and its stage falls away; so
    does Square in L2 on images of fewer than five pixels a side.
    """
    left_out = set()
    if classes < DLR_CLASSES:
        left_out.add("apgd-t")
    if norm == "l2" and side < L2_SQUARE_SIDE:
        left_out.add("square")
    return tuple(stage for stage in ("apgd-ce", "apgd-t", "fab-t", "square") if stage not in left_out)


class AuthorsAutoAttack(EvasionAttack):  # type: ignore[misc]
    """The standard AutoAttack of Croce & Hein, by the authors' package `pyautoattack`.

    ART has an attack of this name that is another ensemble (DeepFool for FAB-T, no targeted APGD). With fewer than ten
    classes the nine targets become K - 1, as the authors advise.

    Args:
        estimator: with a torch module.
        norm: "linf" or "l2".
        eps: radius, a fraction of 1.
        seed: of all stages.
        batch_size: images at a time. The package draws noise batch by batch, so results depend on it.
    """

    attack_params = (*EvasionAttack.attack_params, "norm", "eps", "seed", "batch_size")
    _estimator_requirements = (PyTorchClassifier,)

    def __init__(
        self,
        estimator: PyTorchClassifier,
        *,
        norm: Literal["linf", "l2"] = "linf",
        eps: float = 8 / 255,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator=estimator)
        self.norm, self.eps, self.seed, self.batch_size = norm, eps, seed, batch_size
        self.warnings: list[str] = []
        """What the package doubts about the model: randomised, probabilities, zero gradients, Square too good."""

    def generate(self, x: NDArray[Any], y: NDArray[Any] | None = None, **kwargs: Any) -> NDArray[np.float32]:
        """Adversarial images, float32 of x's shape; an image that withstood every stage comes back as it was.

        Args:
            x: images `(N, C, H, W)` in [0, 1].
            y: true labels, `(N,)` or one-hot `(N, K)`.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if len(x) == 0:
            return x
        if y is None:
            y = self.estimator.predict(x, batch_size=self.batch_size)
        labels = (np.argmax(y, axis=1) if y.ndim == 2 else y).astype(np.int64)
        device, classes = self.estimator.device, self.estimator.nb_classes
        runner = AutoAttack(
            self._logits,
            device=device,
            eps=self.eps,
            norm={"linf": "Linf", "l2": "L2"}[self.norm],
            seed=self.seed,
            version="standard",
        )
        runner.verbose = False
        stages = ensemble(classes, self.norm, min(x.shape[2:]))
        if len(stages) < len(ensemble(10)):
            self.warnings = [f"not the whole ensemble: only {', '.join(stages)} are defined here"]
        runner.attacks_to_run = list(stages)
        runner.apgd_targeted.n_target_classes = runner.fab.n_target_classes = min(TARGETS, classes - 1)
        with torch.random.fork_rng(), _heard(self.warnings):  # the package seeds torch's global generator
            x_adv, _ = runner.run_standard_evaluation(
                torch.from_numpy(x).to(device), torch.from_numpy(labels).to(device), batch_size=self.batch_size
            )
        return np.asarray(x_adv.cpu().numpy(), dtype=np.float32)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.estimator._predict_framework(x)[0]
        return logits


@contextmanager
def _heard(warnings: list[str]) -> Iterator[None]:
    """Collect what the package logs as a warning, in place of letting it onto the screen."""

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # The advice names a page of the package's repository that nobody has at hand.
            text = record.getMessage().split(" See ")[0].strip()
            if text not in warnings:
                warnings.append(text)

    logger, handler = logging.getLogger("auto-attack"), Collect(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
