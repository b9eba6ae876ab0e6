"""AutoAttack: stage after stage on what the stages before have left."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.estimators.classification.classifier import ClassifierMixin
from numpy.typing import NDArray
from torch import Tensor

from evaluators.attacks.autoattack.apgd import APGD
from evaluators.attacks.autoattack.fab import FAB
from evaluators.attacks.autoattack.square import Square
from evaluators.attacks.autoattack.stages import ROBUST, VERSIONS, Stage, Version, ensemble
from evaluators.attacks.native import NativeAttack
from evaluators.ball import Norm, into_ball
from evaluators.units import Halfway


class AutoAttack(NativeAttack):
    """The ensemble of Croce & Hein (ICML 2020, https://arxiv.org/abs/2003.01690), in any of its three versions.

    ART has an attack of this name that is another ensemble (DeepFool for FAB-T, no targeted APGD, Square five times);
    this one's numbers are those of RobustBench. An image leaves the moment a stage has broken it, and it counts as
    broken when `estimator.predict`, the deployed runtime, gets it wrong inside the ball.

    Args:
        estimator: with a torch module.
        norm: "linf", "l2" or "l1".
        eps: radius, a fraction of 1.
        version: "standard", "plus" (more losses and restarts) or "rand" (for models that answer at random).
        queries: of the Square attack.
        seed: of all stages.
        batch_size: images at a time.

    Attributes:
        stages: names, in the order in which they run.
        broken_by: int8 `(N,)` after `generate`: the number of the stage that broke an image, ROBUST for none.
        stage_seconds: what each took.
        halfway: where to keep what is found between stages, if anywhere (`evaluators.units.Halfway`).

    Raises:
        ValueError: an unknown version.
    """

    attack_params = (*NativeAttack.attack_params, "version", "queries")
    batches_itself = True

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
        chosen, self._notes = ensemble(version, classes=estimator.nb_classes, norm=norm, side=side)
        self._chosen = chosen
        self.stages = tuple(stage.name for stage in chosen)
        self.broken_by: NDArray[np.int8] = np.zeros(0, dtype=np.int8)
        self.stage_seconds: list[float] = []
        self.halfway = Halfway(None)

    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """An adversarial image where a stage found one, else what the last stage found best."""
        self.warnings = list(self._notes)
        images, labels = x.cpu().numpy(), y.cpu().numpy()
        found = images.copy()
        self.broken_by, self.stage_seconds = np.full(len(x), ROBUST, dtype=np.int8), []
        if kept := self.halfway.get():
            found[kept["changed"]] = kept["found"]
            self.broken_by, left, self.stage_seconds = kept["broken_by"], kept["left"], kept["stage_seconds"]
            self.warnings = kept["warnings"]
        else:
            # An image that is wrong as it is needs no search.
            left = np.flatnonzero(self._predicted(images) == labels)
        for number, stage in list(enumerate(self._chosen))[len(self.stage_seconds) :]:
            if len(left) == 0:
                break
            begun = time.perf_counter()
            places = torch.from_numpy(left).to(x.device)
            attack = self._attack(stage)
            candidates = attack.search(x[places], y[places], index[places]).detach().cpu().numpy()
            self.warnings += [text for text in attack.warnings if text not in self.warnings]
            candidates = into_ball(candidates, images[left], self.norm, self.eps)
            found[left] = candidates
            broken = self._predicted(candidates) != labels[left]
            self.broken_by[left[broken]] = number
            left = left[~broken]
            self.stage_seconds.append(time.perf_counter() - begun)
            if number + 1 < len(self._chosen):
                changed = np.flatnonzero((found != images).any(axis=(1, 2, 3)))
                self.halfway.put(
                    changed=changed,
                    found=found[changed],
                    broken_by=self.broken_by,
                    left=left,
                    stage_seconds=self.stage_seconds,
                    warnings=self.warnings,
                )
        return torch.from_numpy(found).to(x.device)

    def _predicted(self, images: NDArray[np.float32]) -> NDArray[np.int64]:
        """The deployed runtime's predictions `(N,)`; -1 where a logit is not finite."""
        logits = np.asarray(self.estimator.predict(images, batch_size=self.batch_size))
        finite = np.isfinite(logits).all(axis=1)
        return np.where(finite, logits.argmax(axis=1), -1)

    def _attack(self, stage: Stage) -> NativeAttack:
        common: dict[str, Any] = {
            "norm": self.norm,
            "eps": self.eps,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "restarts": stage.restarts,
        }
        build: Callable[..., NativeAttack]
        own: dict[str, Any]
        wide = self.version == "standard"
        match stage.name:
            case "apgd-ce":
                build, own = APGD, {"loss": "ce", "eot": stage.eot, "wide": wide}
            case "apgd-dlr":
                build, own = APGD, {"loss": "dlr", "eot": stage.eot, "wide": wide}
            case "apgd-t":
                build, own = APGD, {"targets": stage.targets, "wide": wide}
            case "fab" | "fab-t":
                build, own = FAB, {"targets": stage.targets}
            case _:
                steps = self.victim.quantised
                build, own = Square, {"queries": self.queries, "accept_equal": steps, "rescale": False}
        attack = build(self.estimator, **common, **own)
        attack.draws, attack.victim = self.draws, self.victim
        return attack
