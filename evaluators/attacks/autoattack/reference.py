"""AutoAttack by its authors' own package, stage by stage, to compare ours with."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import Tensor

from dgad_tk.common import UserError
from evaluators.attacks.arguments import check_eps, images_of_caller, labels_of_caller
from evaluators.attacks.autoattack.stages import ROBUST, Version, ensemble
from evaluators.ball import Norm

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class AuthorsAutoAttack(EvasionAttack):  # type: ignore[misc]
    """AutoAttack of Croce & Hein (ICML 2020), run by `pyautoattack` (the extra `reference`) on the estimator's module.

    Each stage is a run of the package on the images that withstood the stages before, which is what the package does
    by itself; so the outcome of every image is known stage by stage. It draws batch by batch, so results depend on
    `batch_size`.

    Args:
        estimator: with a torch module.
        norm, eps, version, queries, seed: as in `AutoAttack`.
        batch_size: images at a time.

    Raises:
        UserError: the package is not installed.
        ValueError: an eps that cannot be one; later, images or labels that cannot be any.
    """

    attack_params = (*EvasionAttack.attack_params, "norm", "eps", "version", "queries", "seed", "batch_size")
    _estimator_requirements = (PyTorchClassifier,)

    def __init__(
        self,
        estimator: PyTorchClassifier,
        *,
        norm: Norm = "linf",
        eps: float = 8 / 255,
        version: Version = "standard",
        queries: int = 5000,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator=estimator)
        self.norm, self.eps, self.version, self.queries = norm, eps, version, queries
        self.seed, self.batch_size = seed, batch_size
        check_eps(norm, eps)
        self.warnings: list[str] = []
        """What the package doubts about the model: randomised, probabilities, zero gradients."""
        self.stages: tuple[str, ...] = ()
        self.broken_by: NDArray[np.int8] = np.zeros(0, dtype=np.int8)
        self.stage_seconds: list[float] = []

    def generate(self, x: NDArray[Any], y: NDArray[Any] | None = None, **kwargs: Any) -> NDArray[np.float32]:
        """Adversarial images, float32 of x's shape; an image that withstood every stage comes back as it was.

        Args:
            x: images `(N, C, H, W)` in [0, 1].
            y: true labels, `(N,)`, `(N, 1)` or one-hot `(N, K)`; None takes the estimator's predictions.
        """
        try:
            from pyautoattack import AutoAttack as Package
        except ModuleNotFoundError:
            raise UserError(
                "the authors' AutoAttack is not installed", hint="pip install 'dgad-tk[reference]'"
            ) from None
        check_eps(self.norm, self.eps)
        x = images_of_caller(self.estimator, x)
        labels = labels_of_caller(self.estimator, x, y)
        found, self.broken_by = x.copy(), np.full(len(x), ROBUST, dtype=np.int8)
        chosen, self.warnings = ensemble(
            self.version, classes=self.estimator.nb_classes, norm=self.norm, side=min(x.shape[2:])
        )
        self.stages, self.stage_seconds = tuple(stage.name for stage in chosen), []
        # An image that is wrong as it is needs no search, and no stage has broken it.
        device, left = self.estimator.device, np.flatnonzero(self._predicted(x) == labels)
        for number, stage in enumerate(chosen):
            if len(left) == 0:
                break
            runner = Package(
                self._logits, device=device, eps=self.eps, norm=NORMS[self.norm], seed=self.seed, version=self.version
            )
            runner.verbose = False
            runner.attacks_to_run = [stage.name]
            runner.apgd.n_restarts = runner.fab.n_restarts = stage.restarts
            runner.apgd_targeted.n_target_classes = runner.fab.n_target_classes = stage.targets
            runner.square.n_queries = self.queries
            begun = time.perf_counter()
            with torch.random.fork_rng(), _heard(self.warnings):  # the package seeds torch's global generator
                images = torch.from_numpy(x[left]).to(device)
                x_adv, y_adv = runner.run_standard_evaluation(
                    images, torch.from_numpy(labels[left]).to(device), batch_size=self.batch_size
                )
            self.stage_seconds.append(time.perf_counter() - begun)
            broken = y_adv.cpu().numpy() != labels[left]
            found[left[broken]] = x_adv.cpu().numpy()[broken]
            self.broken_by[left[broken]] = number
            left = left[~broken]
        return found

    @torch.no_grad()
    def _predicted(self, images: NDArray[np.float32]) -> NDArray[np.int64]:
        """The module's predictions `(N,)`: it is the only one that the package knows."""
        parts = [images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)]
        answers = [self._logits(torch.from_numpy(part).to(self.estimator.device)).argmax(dim=1) for part in parts]
        return torch.cat(answers).cpu().numpy() if answers else np.zeros(0, dtype=np.int64)

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
