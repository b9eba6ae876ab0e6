"""AutoAttack: stage after stage on what the stages before have left."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from art.estimators.classification.classifier import ClassifierMixin
from numpy.typing import NDArray
from torch import Tensor

from evaluators.attacks.autoattack.apgd.apgd import APGD, Loss
from evaluators.attacks.autoattack.fab.fab import FAB
from evaluators.attacks.autoattack.square.square import Square
from evaluators.attacks.autoattack.stages import ROBUST, VERSIONS, Stage, Version, ensemble
from evaluators.attacks.halfway import NOWHERE, Halfway
from evaluators.attacks.native import NativeAttack, kept
from evaluators.attacks.result import SearchResult
from evaluators.target.ball import Norm, into_ball


@dataclass
class _Progress:
    """What the stages so far have made of N images: it goes to disk after each of them.

    Attributes:
        found: float32 `(N, C, H, W)`, inside the ball.
        broken_by: int8 `(N,)`, number of the stage that broke an image, ROBUST for none.
        left: int64, places of the images that the next stage gets.
        seconds: of each stage.
        warnings: sentences for the reader.
    """

    found: NDArray[np.float32]
    broken_by: NDArray[np.int8]
    left: NDArray[np.int64]
    seconds: list[float]
    warnings: list[str]


class AutoAttack(NativeAttack):
    """The ensemble of Croce & Hein (ICML 2020, https://arxiv.org/abs/2003.01690), in any of its three versions.

    ART has an attack of this name that is another ensemble (DeepFool for FAB-T, no targeted APGD, Square five times);
    this one's numbers are those of RobustBench. An image leaves the moment a stage has broken it, and it counts as
    broken when `estimator.predict`, the deployed runtime, gets it wrong inside the ball.

    Args:
        version: "standard", "plus" (more losses and restarts) or "rand" (for models that answer at random).
        queries: of the Square attack.

    Other arguments are those of `NativeAttack`.

    Attributes:
        stages: in the order in which they run.

    Raises:
        ValueError: an unknown version.
    """

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        norm: Norm = "linf",
        eps: float = 8 / 255,
        version: Version = "standard",
        queries: int = 5000,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator, norm=norm, eps=eps, seed=seed, batch_size=batch_size)
        if version not in VERSIONS:
            raise ValueError(f"expected version {', '.join(VERSIONS)}, got {version!r}")
        self.version, self.queries = version, queries
        side = min(estimator.input_shape[1:])
        self.stages, self._notes = ensemble(version, classes=estimator.nb_classes, norm=norm, side=side)

    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """An adversarial image where a stage found one, else what the last stage found best."""
        images, labels, places = (each.cpu().numpy() for each in (x, y, index))
        return torch.from_numpy(self.searched(images, labels, places, NOWHERE).adversarials).to(x.device)

    def searched(
        self, x: NDArray[np.float32], y: NDArray[np.int64], index: NDArray[np.int64], halfway: Halfway
    ) -> SearchResult:
        if (before := halfway.get()) is not None:
            state = _Progress(**before)
        else:
            # An image that is wrong as it is needs no search.
            right = np.flatnonzero(self._predicted(x) == y)
            state = _Progress(x.copy(), np.full(len(x), ROBUST, dtype=np.int8), right, [], list(self._notes))
        tensors = [torch.from_numpy(each).to(self.victim.device) for each in (x, y, index)]
        for number, stage in list(enumerate(self.stages))[len(state.seconds) :]:
            if len(state.left) == 0:
                break
            begun, left = time.perf_counter(), state.left
            attack, rows = self._attack(stage), torch.from_numpy(left).to(self.victim.device)
            with kept():
                candidates = attack.search(*(each[rows] for each in tensors)).detach().cpu().numpy()
            state.warnings += [text for text in attack.warnings if text not in state.warnings]
            state.found[left] = into_ball(candidates, x[left], self.norm, self.eps)
            broken = self._predicted(state.found[left]) != y[left]
            state.broken_by[left[broken]] = number
            state.left = left[~broken]
            state.seconds.append(time.perf_counter() - begun)
            if number + 1 < len(self.stages):
                halfway.put(**vars(state))
        self.warnings = state.warnings
        names = [stage.name for stage in self.stages]
        return SearchResult(state.found, state.broken_by, names, state.seconds, state.warnings)

    def _predicted(self, images: NDArray[np.float32]) -> NDArray[np.int64]:
        """The deployed runtime's predictions `(N,)`; -1 where a logit is not finite."""
        logits = np.asarray(self.estimator.predict(images, batch_size=self.batch_size))
        finite = np.isfinite(logits).all(axis=1)
        return np.where(finite, logits.argmax(axis=1), -1)

    def _attack(self, stage: Stage) -> NativeAttack:
        common: dict[str, Any] = {name: getattr(self, name) for name in ("norm", "eps", "seed", "batch_size")}
        attack: NativeAttack
        if stage.name.startswith("apgd"):
            loss: Loss = "ce" if stage.name == "apgd-ce" else "dlr"
            several: dict[str, Any] = {"targets": stage.targets, "restarts": stage.restarts, "eot": stage.eot}
            attack = APGD(self.estimator, loss=loss, wide=self.version == "standard", **several, **common)
        elif stage.name.startswith("fab"):
            attack = FAB(self.estimator, targets=stage.targets, restarts=stage.restarts, **common)
        else:
            attack = Square(self.estimator, queries=self.queries, rescale=False, **common)
        attack.draws, attack.victim = self.draws, self.victim
        return attack
