"""The unit of work: one attack on one chunk of images. Units are kept on disk, so that an evaluation goes on where it
stopped and does only new work when an attack or more images are added."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.common import written_aside

UNIT_FORMAT = 1
NOT_ATTACKED = -1


@dataclass(frozen=True)
class Unit:
    """Outcome of one attack on one chunk of N images, of which the clean model gets some right.

    Attributes:
        attacked: bool `(N,)`, the clean prediction is right.
        broken: bool `(N,)`, the deployed runtime gets the adversarial image wrong.
        adv_pred: int64 `(N,)`, its prediction there; -1 where not attacked.
        l2, linf: float64 `(N,)`, distances; NaN where not attacked.
        seconds: of the search and the verdict.
        forward_passes, backward_passes: images through the network, in search and verdict.
        warnings: what the attack itself had to say.
        gallery: up to GALLERY adversarial images that broke, float32 `(g, C, H, W)`, and their places in the chunk.
    """

    attacked: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    adv_pred: NDArray[np.int64]
    l2: NDArray[np.float64]
    linf: NDArray[np.float64]
    seconds: float
    forward_passes: int
    backward_passes: int
    gallery: NDArray[np.float32]
    gallery_at: NDArray[np.int64]
    warnings: list[str] = field(default_factory=list)


class UnitStore:
    """Units on disk under the question they answer; in memory only when `folder` is None."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def path(self, question: Mapping[str, Any]) -> Path | None:
        """Where the answer to a question lies. Anything that could change the answer belongs into the question."""
        if self.folder is None:
            return None
        text = json.dumps({"format": UNIT_FORMAT, **question}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"

    def get(self, question: Mapping[str, Any]) -> Unit | None:
        """The stored answer, or None. A file that cannot be read counts as none and is made again."""
        path = self.path(question)
        if path is None or not path.is_file():
            return None
        try:
            with np.load(BytesIO(path.read_bytes())) as arrays:
                found = dict(arrays)
            plain = json.loads(str(found.pop("plain")))
        except Exception:  # noqa: BLE001 - numpy, zipfile and zlib raise what damaged bytes lead them to
            return None
        complete = found.keys() | plain.keys() == {each.name for each in fields(Unit)}
        return Unit(**found, **plain) if complete else None

    def put(self, question: Mapping[str, Any], unit: Unit) -> None:
        """Write an answer aside and rename it."""
        path = self.path(question)
        if path is None:
            return
        arrays: dict[str, Any] = {key: value for key, value in vars(unit).items() if isinstance(value, np.ndarray)}
        plain = {key: value for key, value in vars(unit).items() if key not in arrays}
        with written_aside(path) as aside:
            np.savez_compressed(aside, **arrays, plain=np.array(json.dumps(plain)))
