"""Images stay on disk: what the data take of memory that cannot be dropped does not grow with their number."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from memory import NEEDS_ACCOUNT, WATCH
from shared import ROOT

pytestmark = NEEDS_ACCOUNT

EPOCH = (
    WATCH
    + """
from dgad_tk.data import load_dataset

begin = anonymous()
seen.append(begin)
threading.Thread(target=watch, daemon=True).start()
dataset = load_dataset(sys.argv[1], data_dir=Path(sys.argv[2]))
order = np.random.default_rng(0).permutation(len(dataset.train))
for start in range(0, len(order), 128):
    dataset.train.take(order[start : start + 128])
for split in (dataset.val, dataset.test):
    for start in range(0, len(split), 128):
        split.take(slice(start, start + 128))
seen.append(anonymous())
assert "torch" not in sys.modules  # whose own memory would blur the picture
images = len(dataset.train) + len(dataset.val)
print(json.dumps({"peak": max(seen) - begin, "end": seen[-1] - begin, "images": images}))
"""
)


def write_binary(root: Path, n: int) -> Path:
    """CIFAR-10's binary version with `n` training images, and as many test images as make a fifth of it."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        records = rng.integers(0, 256, (n // 5, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class{k}" for k in range(10)))
    return root


def write_pickles(root: Path, n: int) -> Path:
    """CIFAR-100's pickles: all training images are one array in one file."""
    from cifar_files import python2

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", n), ("test", 1000)):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        files = [b"a_file_name_s_%06d.png" % row for row in range(count)]
        labels = rng.integers(0, 100, count).tolist()
        values = {b"filenames": files, b"fine_labels": labels, b"data": pixels}
        (folder / name).write_bytes(python2(values))
    (folder / "meta").write_bytes(python2({b"fine_label_names": [b"class%d" % k for k in range(100)]}))
    return root


def write_mat(root: Path, n: int) -> Path:
    """SVHN's compressed MATLAB files."""
    from scipy.io import savemat

    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", n), ("test", 1000)):
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = rng.integers(1, 11, (count, 1)).astype(np.uint8)
        savemat(root / f"{name}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return root


def epoch(name: str, root: Path, cache: Path) -> dict[str, float]:
    """What a process that loads `name` and takes every image once says: MB of growth, and how many images it saw."""
    run = subprocess.run(
        [sys.executable, "-c", EPOCH, name, str(root)],
        cwd=ROOT,
        env=os.environ | {"DGAD_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize(
    ("name", "write", "few", "many", "copies"),
    [
        ("cifar10", write_binary, 10_000, 100_000, 0),
        ("cifar100", write_pickles, 10_000, 30_000, 1),  # a pickle is one string of all pixels
        ("svhn", write_mat, 5_000, 20_000, 2),  # packed and unpacked
    ],
)
def test_anonymous_memory_does_not_grow_with_the_images(
    tmp_path: Path, name: str, write: Callable[[Path, int], Path], few: int, many: int, copies: int
) -> None:
    """Not in an epoch in random order, but for the order and the labels; while they are decoded, by one split."""
    roots = {n: write(tmp_path / str(n), n) for n in (few, many)}
    for cache, held in (("empty", copies), ("filled", 0)):
        found = {n: epoch(name, root, tmp_path / "cache") for n, root in roots.items()}
        assert {n: record["images"] for n, record in found.items()} == {n: n for n in roots}
        split = {n: 3072 * n * held / 2**20 for n in roots}  # MB
        assert found[many]["peak"] < 30 + 1.1 * split[many], f"{cache} cache: {found}"
        grown = found[many]["peak"] - found[few]["peak"] - 1.1 * (split[many] - split[few])
        assert grown < many / 5000, f"{cache} cache: {found}"
        assert found[many]["end"] < 30, f"{cache} cache: {found}"
