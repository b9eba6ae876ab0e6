"""images.npz: a few images of an epoch's last step, as the network saw them, and what the attack made of them."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dgad_tk.common import UserError, reason_of, written_aside
from dgad_tk.strangers.arrays import read_arrays

MOST = 8
"""Images kept."""

LARGEST = 2**28
"""Bytes of all arrays. A file that claims more is damaged or hostile."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Up to MOST images of one training step.

    Attributes:
        epoch: from 0, as in metrics.jsonl.
        index: int64 `(n,)`, dataset indices.
        label: int64 `(n,)`.
        clean: float32 `(n, C, H, W)` in [0, 1], augmented.
        adversarial: the same after the inner maximisation; None for a method without one.
        clean_pred: int64 `(n,)`, the student's answers in that step, in train mode; None where the step computed none.
        adv_pred: the same for `adversarial`.
    """

    epoch: int
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32] | None = None
    clean_pred: NDArray[np.int64] | None = None
    adv_pred: NDArray[np.int64] | None = None

    def save(self, path: Path) -> None:
        """Write the arrays that there are, under the names of the attributes."""
        arrays = {each.name: getattr(self, each.name) for each in fields(self)}
        with written_aside(path) as aside:
            # Not compressed: for images of 224 pixels, that would take longer than a short epoch may wait.
            np.savez(aside, **{name: value for name, value in arrays.items() if value is not None})

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `save` wrote.

        Raises:
            UserError: the file is missing, damaged, or holds other arrays.
        """
        try:
            names = {each.name for each in fields(cls)}
            found: dict[str, Any] = read_arrays(path, names.__contains__, most=LARGEST)
            return cls(**(found | {"epoch": int(found["epoch"])}))._checked()
        except Exception as error:  # noqa: BLE001 - numpy, zipfile and zlib raise what damaged bytes lead them to
            hint = "the next epoch of the run writes it again"
            raise UserError(f"cannot read '{path}' as training images: {reason_of(error)}", hint=hint) from None

    def _checked(self) -> Self:
        """Raise ValueError where shapes or types are not those above."""
        n = len(self.label)
        for name in ("clean", "adversarial"):
            images = getattr(self, name)
            if images is not None and (images.ndim != 4 or len(images) != n or images.dtype != np.float32):
                raise ValueError(f"{name} is {images.dtype} {images.shape}")
        for name in ("index", "label", "clean_pred", "adv_pred"):
            values = getattr(self, name)
            if values is not None and (values.shape != (n,) or values.dtype != np.int64):
                raise ValueError(f"{name} is {values.dtype} {values.shape}")
        if self.adversarial is not None and self.adversarial.shape != self.clean.shape:
            raise ValueError(f"clean is {self.clean.shape}, adversarial {self.adversarial.shape}")
        return self
