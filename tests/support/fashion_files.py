"""Fashion-MNIST's files."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


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
