"""The record of an evaluation: for every image and every row, what the deployed runtime answered."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.config.threat import Norm
from dgad_tk.data import Split
from evaluators.engine.probes import Probes
from evaluators.engine.units import Unit
from evaluators.plan.rows import Row
from evaluators.target.judge import Judged, Twin

IDLE = "unreliable: the attack changed under 1 % of the attacked images"


@dataclass(frozen=True)
class Outcome:
    """A row, and its units joined over the chunks.

    Attributes:
        unit: None where the row was skipped, because it cannot run on this model, or where it failed.
        reason: why there is no unit.
        failed: the row began and failed.
        flags: cautions for the reader.
    """

    row: Row
    unit: Unit | None = None
    reason: str = ""
    failed: bool = False
    flags: list[str] = field(default_factory=list)

    @property
    def status(self) -> Literal["done", "skipped", "failed"]:
        return "done" if self.unit is not None else "failed" if self.failed else "skipped"


def finished(row: Row, parts: Sequence[Unit], starts: Sequence[int]) -> Outcome:
    """The outcome of a row that is done.

    Args:
        parts: its units, in the order of the images.
        starts: where the chunk of each unit begins.
    """
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("attacked", "broken", "adv_pred", "confidence", "l2", "linf", "distance", "gallery", "broken_by")
    }
    sums: dict[str, Any] = {
        name: sum(getattr(part, name) for part in parts)
        for name in ("seconds", "forward_passes", "backward_passes", "reused")
    }
    unit = Unit(
        **arrays,
        **sums,
        gallery_at=np.concatenate([part.gallery_at + start for part, start in zip(parts, starts, strict=True)]),
        stages=max((part.stages for part in parts), key=len),
        stage_seconds=[sum(each) for each in zip_longest(*(part.stage_seconds for part in parts), fillvalue=0.0)],
        warnings=list(dict.fromkeys(text for part in parts for text in part.warnings)),
    )
    flags = [row.spec.note] if row.spec.note else []
    flags += unit.warnings
    if unit.attacked.any() and float((unit.linf[unit.attacked] > 0).mean()) < 0.01:
        flags.append(IDLE)
    return Outcome(row, unit, flags=flags)


@dataclass(frozen=True)
class Evaluation:
    """The record of one evaluated model on n images.

    Attributes:
        predictor: what was evaluated.
        split: the images.
        classes: names of the classes, in the order of the labels.
        clean: answers to the clean images.
        outcomes: one per row.
        twin: difference of module and runtime on clean images; None for a black box.
        probes: what the checks need to know about the model itself.
        images_sha256: of the images and labels that were evaluated.
        norm, eps: of the budget rows; without any, the norm of the first row.
    """

    predictor: Predictor
    split: Split
    classes: tuple[str, ...]
    clean: Judged
    outcomes: list[Outcome]
    twin: Twin | None
    probes: Probes
    images_sha256: str
    norm: Norm
    eps: tuple[float, ...]
    seed: int
    batch_size: int

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.split.labels

    @property
    def index(self) -> NDArray[np.int64]:
        """Rows of the dataset."""
        return self.split.index

    @property
    def clean_right(self) -> NDArray[np.bool_]:
        """Images that are right when clean, bool `(n,)`."""
        return self.clean.right(self.labels)

    @property
    def clean_accuracy(self) -> float:
        return float(self.clean_right.mean())

    def held(self, eps: float) -> NDArray[np.bool_]:
        """Images that are right when clean and withstand every budget attack inside the ball of `eps`, bool `(n,)`.

        An image that broke at a smaller radius breaks inside this ball too. Rows that ran on a part of the images do
        not count.

        Raises:
            ValueError: no budget attack ran at `eps`.
        """
        if eps not in self.judged_eps:
            raise ValueError(f"no budget attack ran at eps {eps}: expected one of {list(self.judged_eps)}")
        held = self.clean_right
        for radius, unit in self._whole:
            if radius <= eps:
                held &= ~unit.broken
        return held

    @property
    def judged_eps(self) -> tuple[float, ...]:
        """The radii at which a budget attack ran on all images."""
        ran = [radius for radius, _ in self._whole]
        return tuple(eps for eps in self.eps if eps in ran)

    @property
    def done(self) -> list[tuple[Row, Unit]]:
        """The rows that are done, with what they found."""
        return [(each.row, each.unit) for each in self.outcomes if each.unit is not None]

    @property
    def _whole(self) -> list[tuple[float, Unit]]:
        """Radius and outcome of each budget row that looked at every image."""
        n = len(self.labels)
        return [(row.eps, unit) for row, unit in self.done if row.eps is not None and len(unit.broken) == n]

    def worst_case(self, eps: float) -> float:
        """Share of all images that are in `held(eps)`."""
        return float(self.held(eps).mean())
