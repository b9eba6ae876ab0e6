"""Files of Fashion-MNIST and SVHN as their authors wrote them, with random content."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

Pixels = NDArray[np.uint8]
Arrays = dict[str, NDArray[Any]]


def random_pixels(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path: Path, values: Pixels) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        file.write(header + values.tobytes())


def write_fashion(folder: Path, *, suffix: str = ".gz", n: int = 40) -> dict[str, Pixels]:
    arrays = {}
    for seed, prefix in enumerate(("train", "t10k")):
        arrays[f"{prefix}-images-idx3-ubyte"] = random_pixels(n, 28, 28, seed=seed)
        arrays[f"{prefix}-labels-idx1-ubyte"] = (np.arange(n) % 10).astype(np.uint8)
    for name, values in arrays.items():
        write_idx(folder / f"{name}{suffix}", values)
    return arrays


def svhn_arrays(seed: int, n: int) -> Arrays:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    return {"X": images, "y": rng.integers(1, 11, (n, 1)).astype(np.uint8)}


def write_svhn(root: Path, *, packed: bool = True, n: int = 41, **changed: Any) -> Path:
    """Both files; what is `changed` is so in the training file. The official ones are compressed."""
    root.mkdir(exist_ok=True)
    savemat(root / "train_32x32.mat", {**svhn_arrays(0, n), **changed}, do_compression=packed)
    savemat(root / "test_32x32.mat", svhn_arrays(1, n + 1), do_compression=packed)
    return root
