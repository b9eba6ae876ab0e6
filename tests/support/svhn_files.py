"""SVHN's files."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

Arrays = dict[str, NDArray[Any]]


def write(root: Path, *, packed: bool = True, n: int = 41, **changed: Any) -> Path:
    """Both files; what is `changed` is so in the training file. The official ones are compressed."""
    root.mkdir(exist_ok=True)
    savemat(root / "train_32x32.mat", {**arrays(0, n), **changed}, do_compression=packed)
    savemat(root / "test_32x32.mat", arrays(1, n + 1), do_compression=packed)
    return root


def arrays(seed: int, n: int) -> Arrays:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    return {"X": images, "y": rng.integers(1, 11, (n, 1)).astype(np.uint8)}
