"""AutoAttack: each stage attacks the images that the stages before it have left."""

import time
from typing import Any

import numpy as np
import torch
from art.estimators.classification.classifier import ClassifierMixin
from numpy.typing import NDArray
from torch import Tensor

from dgad_tk.config.threat import Norm
from evaluators.attacks.array_file import NOWHERE, ArrayFile
from evaluators.attacks.autoattack.apgd.apgd import APGD, Loss
from evaluators.attacks.autoattack.fab.fab import FAB
from evaluators.attacks.autoattack.square.square import Square
from evaluators.attacks.autoattack.stages import CLOSING, ROBUST, VERSIONS, Stage, Version, closed, ensemble
from evaluators.attacks.native import NativeAttack, kept
from evaluators.attacks.result import SearchResult
from evaluators.target.ball import into_ball


class AutoAttack(NativeAttack):
    """The ensemble of Croce & Hein (ICML 2020, https://arxiv.org/abs/2003.01690), in any of its three versions.

    Its numbers are those of RobustBench. ART's attack of this name is another ensemble (DeepFool for FAB-T, no targeted
    APGD, Square five times). An image is broken when `estimator.predict`, the deployed runtime, gets it wrong inside
    the ball. Later stages do not see it. Of an estimator that searches in bf16, what the stages with gradients have
    left gets one more, in float32 (`stages.closed`).

    Args:
        version: "standard", "plus" (more losses and restarts) or "rand" (for models with random answers).
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
        if self.victim.precision == "bf16":
            self.stages = closed(self.stages, estimator.nb_classes)

    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The adversarial image that a stage found, or the best point of the last stage."""
        images, labels, places = (each.cpu().numpy() for each in (x, y, index))
        return torch.from_numpy(self.searched(images, labels, places, NOWHERE).adversarials).to(x.device)

    def searched(
        self, x: NDArray[np.float32], y: NDArray[np.int64], index: NDArray[np.int64], halfway: ArrayFile
    ) -> SearchResult:
        if (before := halfway.get()) is not None:
            left, found = before.pop("left"), SearchResult(**before)
        else:
            # An image that is wrong as it is needs no search.
            left = np.flatnonzero(self._predicted(x) == y)
            names = [stage.name for stage in self.stages]
            found = SearchResult(x.copy(), np.full(len(x), ROBUST, dtype=np.int8), names, [], list(self._notes))
        assert found.broken_by is not None
        tensors = [torch.from_numpy(each).to(self.victim.device) for each in (x, y, index)]
        for number, stage in list(enumerate(self.stages))[len(found.stage_seconds) :]:
            if len(left) == 0:
                break
            begun = time.perf_counter()
            attack, rows = self._attack(stage), torch.from_numpy(left).to(self.victim.device)
            with kept():
                candidates = attack.search(*(each[rows] for each in tensors)).detach().cpu().numpy()
            found.warnings.extend(text for text in attack.warnings if text not in found.warnings)
            found.adversarials[left] = into_ball(candidates, x[left], self.norm, self.eps)
            broken = self._predicted(found.adversarials[left]) != y[left]
            found.broken_by[left[broken]] = number
            left = left[~broken]
            found.stage_seconds.append(time.perf_counter() - begun)
            if number + 1 < len(self.stages):
                halfway.put(left=left, **vars(found))
        self.warnings = found.warnings
        return found

    def _predicted(self, images: NDArray[np.float32]) -> NDArray[np.int64]:
        """The deployed runtime's predictions `(N,)`; -1 where a logit is not finite."""
        logits = np.asarray(self.estimator.predict(images, batch_size=self.batch_size))
        finite = np.isfinite(logits).all(axis=1)
        return np.where(finite, logits.argmax(axis=1), -1)

    def _attack(self, stage: Stage) -> NativeAttack:
        common: dict[str, Any] = {name: getattr(self, name) for name in ("norm", "eps", "seed", "batch_size")}
        attack: NativeAttack
        if stage.name.startswith("apgd") or stage.name == CLOSING:
            loss: Loss = "dlr" if stage.name in ("apgd-dlr", "apgd-t") else "ce"
            several: dict[str, Any] = {"targets": stage.targets, "restarts": stage.restarts, "eot": stage.eot}
            attack = APGD(self.estimator, loss=loss, wide=self.version == "standard", **several, **common)
        elif stage.name.startswith("fab"):
            attack = FAB(self.estimator, targets=stage.targets, restarts=stage.restarts, **common)
        else:
            attack = Square(self.estimator, queries=self.queries, rescale=False, **common)
        attack.draws = self.draws
        attack.victim = self.victim if attack.lowers and not stage.exact else self.victim.exact
        return attack
