"""The record of an evaluation: for every image and every row, what the deployed runtime answered."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dgad_tk.data import Split
from dgad_tk.predictor import Predictor
from evaluators.ball import Norm
from evaluators.rows import Row
from evaluators.units import Unit

IDLE = "unreliable: the attack changed under 1 % of the attacked images"


@dataclass
class Outcome:
    """A row and its units, joined over the chunks; `reason` says why there are none.

    A row without units was skipped, since it could not be run on this model, or has `failed` half-way.
    """

    row: Row
    unit: Unit | None = None
    reason: str = ""
    failed: bool = False
    flags: list[str] = field(default_factory=list)

    @property
    def status(self) -> Literal["done", "skipped", "failed"]:
        return "done" if self.unit is not None else "failed" if self.failed else "skipped"


@dataclass(frozen=True)
class Evaluation:
    """The record of one evaluated model.

    Attributes:
        predictor: what was evaluated.
        labels, clean_pred: int64 `(n,)`.
        index: int64 `(n,)`, rows of the dataset.
        clean_finite: bool `(n,)`, where all clean logits are finite.
        clean_right: bool `(n,)`; an image with a logit that is not finite counts as wrong.
        outcomes: a row each.
        twin: difference of module and runtime on clean images.
        probes: what the checks need to know about the model itself.
        images_sha256: of the images and labels that were evaluated.
        classes: names of the classes, in the order of the labels.
    """

    predictor: Predictor
    labels: NDArray[np.int64]
    index: NDArray[np.int64]
    clean_pred: NDArray[np.int64]
    clean_finite: NDArray[np.bool_]
    clean_right: NDArray[np.bool_]
    outcomes: list[Outcome]
    twin: dict[str, float]
    probes: dict[str, float]
    images_sha256: str
    norm: Norm
    eps: tuple[float, ...]
    seed: int
    batch_size: int
    split: Split
    classes: tuple[str, ...]

    @property
    def clean_accuracy(self) -> float:
        return float(self.clean_right.mean())

    def held(self, eps: float) -> NDArray[np.bool_]:
        """Images that are right when clean and withstand every budget attack inside the ball of `eps`, bool `(n,)`.

        What a smaller radius broke lies inside this ball too. Rows that ran on a part of the images do not count.

        Raises:
            ValueError: none ran there.
        """
        if not any(self.judges(outcome, eps) and outcome.row.eps == eps for outcome in self.outcomes):
            raise ValueError(f"no budget attack ran at eps {eps}: expected one of {list(self.eps)}")
        held = self.clean_right.copy()
        for outcome in self.outcomes:
            if outcome.unit is not None and self.judges(outcome, eps):
                held &= ~outcome.unit.broken
        return held

    def judges(self, outcome: Outcome, eps: float) -> bool:
        """Whether a row says something about the ball of `eps` for every image."""
        whole = outcome.unit is not None and len(outcome.unit.broken) == len(self.labels)
        return whole and outcome.row.eps is not None and outcome.row.eps <= eps

    def worst_case(self, eps: float) -> float:
        """Share of all images that are in `held(eps)`."""
        return float(self.held(eps).mean())
