"""The unit of work: one attack on one chunk of images. Units are stored on disk, so that an evaluation goes on where it
stopped, and does only new work when an attack or images are added."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.answers.doubts import NOT_ATTACKED, NOT_FINITE
from evaluators.attacks.array_file import ArrayFile

UNIT_FORMAT = 6


@dataclass(frozen=True)
class Unit:
    """Outcome of one attack on one chunk of N images.

    Attributes:
        attacked: bool `(N,)`, the clean prediction is right.
        broken: bool `(N,)`, the deployed runtime gets the adversarial image wrong.
        adv_pred: int64 `(N,)`, its largest logit there; NOT_ATTACKED where not attacked.
        confidence: float32 `(N,)`, probability of that prediction; NaN where not attacked.
        l2, linf, distance: float64 `(N,)`, distances, the last in the row's own norm; NaN where not attacked.
        seconds: of the search and the judgement.
        forward_passes, backward_passes: images through the network, in search and judgement.
        gallery: adversarial images that broke and are worth looking at, float32 `(g, C, H, W)`.
        gallery_at: their places in the chunk, `(g,)`.
        reused: how many of the broken images a smaller radius had broken.
        broken_by, stages, stage_seconds, warnings: as in `SearchResult`.
    """

    attacked: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    adv_pred: NDArray[np.int64]
    confidence: NDArray[np.float32]
    l2: NDArray[np.float64]
    linf: NDArray[np.float64]
    distance: NDArray[np.float64]
    seconds: float
    forward_passes: int
    backward_passes: int
    gallery: NDArray[np.float32]
    gallery_at: NDArray[np.int64]
    broken_by: NDArray[np.int8]
    reused: int = 0
    stages: list[str] = field(default_factory=list)
    stage_seconds: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def answers(self) -> NDArray[np.int64]:
        """The answers under attack, int64 `(N,)`: a class, NOT_ATTACKED, or NOT_FINITE where logits are not finite.

        `adv_pred` has a class there too, by which answers could be counted as right that are not.
        """
        nothing = (self.adv_pred != NOT_ATTACKED) & np.isnan(self.confidence)
        return np.where(nothing, NOT_FINITE, self.adv_pred)


class UnitStore:
    """Units on disk, each under the question that it answers. It stores nothing if `folder` is None."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def file(self, question: Mapping[str, Any], suffix: str = ".npz") -> ArrayFile:
        """The file of the answer to a question. Everything that could change the answer belongs into the question."""
        if self.folder is None:
            return ArrayFile()
        text = json.dumps({"format": UNIT_FORMAT, **question}, sort_keys=True)
        return ArrayFile(self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{suffix}")

    def progress(self, question: Mapping[str, Any]) -> ArrayFile:
        """Where an attack of several stages stores its progress towards the answer."""
        return self.file(question, ".part.npz")
