"""AutoAttack's answer for a tenth of its passes: short ascents as long as they gain, then an alarm for masked
gradients."""

import time
from typing import ClassVar

import numpy as np
import torch
from art.estimators.classification.classifier import ClassifierMixin
from numpy.typing import NDArray
from torch import Tensor

from dgad_tk.config.threat import Norm
from evaluators.attacks.arguments import at_least
from evaluators.attacks.array_file import NOWHERE, ArrayFile
from evaluators.attacks.autoattack.square.moves import TILES
from evaluators.attacks.autoattack.stages import CLOSING, ROBUST
from evaluators.attacks.fast.search import Search
from evaluators.attacks.native import NativeAttack, kept
from evaluators.attacks.result import SearchResult


class FastAutoAttack(NativeAttack):
    """The fast ensemble: per image about a tenth of the passes of the standard AutoAttack.

    Its stages; an image leaves at the first point that the deployed runtime gets wrong.

    - `untargeted`: one ascent of 10 steps from the image on the margin max_{j != y} z_j - z_y.
    - `targeted`: 15 or 10 steps from the image towards each of nine classes, the most promising first (`target_order`).
    - `restarts`: 20 steps from other points towards the three classes that came nearest. They are repeated up to twenty
      times, until the lead that the label still has is out of proportion to what the last rounds took off it
      (PATIENCE in `progress.py`). The image is then given up as robust.
    - `closing-fp32`, after a search in bf16: 20 steps in float32 from the best point towards two classes.
    - `square`: the alarm. Random search (1,000 queries of Square) tries a tenth of the images left. If it breaks one,
      or comes nearer to it on more than a tenth of them, gradients hide weakness: the verdict says so, and all images
      left get Square's 5,000 queries.

    An image's ascents and draws depend on the image, its index and the seed alone. Only the alarm looks at several
    images: those of one call, in an evaluation a unit of 500.

    After A3 (Liu et al., CVPR 2022, https://arxiv.org/abs/2203.05154) and MALT (Melamed et al., NeurIPS 2024,
    https://arxiv.org/abs/2407.02240). A3 ranks the images of a set against each other and drops the lowest; here each
    is judged by itself.

    Args:
        queries: of Square, where the alarm has gone off.
        alarm: queries per image that it tries.

    Other arguments are those of `NativeAttack`.

    Attributes:
        stages: names, in the order in which they run.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    def __init__(
        self,
        estimator: ClassifierMixin,
        *,
        norm: Norm = "linf",
        eps: float = 8 / 255,
        queries: int = 5000,
        alarm: int = 1000,
        seed: int = 0,
        batch_size: int = 250,
    ) -> None:
        super().__init__(estimator, norm=norm, eps=eps, seed=seed, batch_size=batch_size)
        at_least(1, queries=queries, alarm=alarm)
        self.queries, self.alarm = queries, alarm
        closing = [] if self.victim.precision == "fp32" else [CLOSING]
        self.stages = ["untargeted", "targeted", "restarts", *closing, "square"]
        self._notes: list[str] = []
        if norm != "linf" and (side := min(estimator.input_shape[1:])) < TILES:
            self.stages.remove("square")
            self._notes = [f"no alarm for masked gradients: Square needs images of {TILES} pixels a side, not {side}"]

    def search(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The adversarial image of each, or its point of the lowest lead."""
        images, labels, places = (each.cpu().numpy() for each in (x, y, index))
        return torch.from_numpy(self.searched(images, labels, places, NOWHERE).adversarials).to(x.device)

    def searched(
        self, x: NDArray[np.float32], y: NDArray[np.int64], index: NDArray[np.int64], halfway: ArrayFile
    ) -> SearchResult:
        tensors = (torch.from_numpy(each).to(self.victim.device) for each in (x, y, index))
        broken_by, seconds, warnings = np.full(len(x), ROBUST, dtype=np.int8), [], list(self._notes)
        if (before := halfway.get()) is not None:
            broken_by, seconds, warnings = (before.pop(key) for key in ("broken_by", "seconds", "warnings"))
        self.warnings = warnings
        work = Search(self, *tensors, alarm=self.alarm, queries=self.queries, before=before)
        for number, name in list(enumerate(self.stages))[len(seconds) :]:
            begun, held = time.perf_counter(), work.held
            if not held.any():
                break
            with kept():
                self.warnings.extend(work.run(name))
            broken_by[held & ~work.held] = number
            seconds.append(time.perf_counter() - begun)
            if number + 1 < len(self.stages):
                halfway.put(broken_by=broken_by, seconds=seconds, warnings=self.warnings, **work.stored())
        return SearchResult(work.points(), broken_by, list(self.stages), seconds, self.warnings)
