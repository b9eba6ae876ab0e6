"""Fixed, stratified splits and orders. They depend on the labels only, never on the user's seed."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dgad_tk.data.images.size import shown
from dgad_tk.data.spec import Dataset, Labels, Part, Split

VALIDATION_SHARE = 10
"""One in ten training images is held out for validation ..."""
VALIDATION_MOST = 1000
"""... but at most this number: enough to rank checkpoints, few enough to attack in every epoch."""
STRETCHED = 1.35
"""Factor from which on pictures are said to be stretched: above that of 4:3 to a square."""
LOOKED_AT = 64
"""Images in which colours are looked for."""
MOST_NAMED = 10
"""Classes that a message names."""


def stratified_order(labels: Labels, purpose: str) -> NDArray[np.int64]:
    """A permutation of 0..N-1 in which every prefix is nearly class-proportional.

    Each image gets a random rank within its class, and all are sorted by (rank + 1/2) / size of the class. Where all
    classes have the same size, two classes never differ by more than one image in a prefix.

    Args:
        labels: int64 `(N,)`.
        purpose: seeds the ranks; different purposes have unrelated orders.
    """
    key = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:16], "little")
    # Raw words: numpy guarantees the stream of a bit generator, but not what Generator makes of it.
    words = np.random.Philox(key=key).random_raw(2 * len(labels))
    within, between = words[: len(labels)], words[len(labels) :]

    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.lexsort((within, classes))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # Ties are settled at random, so that a very short prefix does not always hold the first classes.
    return np.lexsort((between, (rank + 0.5) / sizes[classes])).astype(np.int64)


def make_splits(parts: Mapping[str, Part]) -> tuple[Split, Split, Split]:
    """Train, validation and test. Without a validation part, validation images are held out of the training part.

    Every class keeps an image to train on. Where no class has one to spare, validation and training share images. The
    splits of parts that are missing otherwise are empty.
    """
    some = next(iter(parts.values()))
    none = Part(some.images[:0], some.labels[:0])
    train, test = parts.get("train", none), parts.get("test", none)
    train_order = stratified_order(train.labels, "train")
    if "val" in parts or "train" not in parts:
        held = parts.get("val", none)
        val = _ordered(held, stratified_order(held.labels, "val"))
    else:
        wanted = max(1, min(VALIDATION_MOST, round(len(train_order) / VALIDATION_SHARE)))
        held_out = _to_spare(train.labels[train_order])[:wanted]
        val = _ordered(train, train_order[held_out] if len(held_out) else train_order[:wanted])
        train_order = np.delete(train_order, held_out)
    return _ordered(train, train_order), val, _ordered(test, stratified_order(test.labels, "test"))


def _to_spare(labels: Labels) -> NDArray[np.int64]:
    """Positions of all images but the last one per class, ascending."""
    _, last = np.unique(labels[::-1], return_index=True)
    return np.setdiff1d(np.arange(len(labels)), len(labels) - 1 - last)


def shares_images(train: Split, val: Split) -> bool:
    """Whether some validation images are also trained on."""
    return val.base is train.base and bool(np.isin(val.index, train.index).any())


def without_images(split: Split, classes: Sequence[str]) -> str:
    """A sentence about the classes without an image in a split; empty where every class has one."""
    lost = sorted(set(range(len(classes))) - set(np.unique(split.labels).tolist()))
    if not lost:
        return ""
    names = ", ".join(classes[k] for k in lost[:MOST_NAMED]) + (", ..." if len(lost) > MOST_NAMED else "")
    return f"classes without an image to train on: {len(lost):,} of {len(classes):,} ({names})"


def stretched(images: Dataset) -> str:
    """A sentence about pictures that lose their shape, and what else can be done; empty where few do."""
    if images.stretch <= STRETCHED:
        return ""
    return (
        f"half of the pictures or more are stretched {images.stretch:.1f} times or more in one direction, to "
        f"{shown(images.shape[1:])} (height x width); --resize crop or --resize pad keeps the shape of what is in them"
    )


def grey(images: Dataset) -> str:
    """A sentence about pictures that have no colour and are read as RGB; empty for others."""
    some = images.train.take(slice(0, LOOKED_AT))
    if some.shape[1] == 1 or not images.spec.image_size or (some != some[:, :1]).any():
        return ""
    return (
        f"the first {len(some):,} training images are grey, and are read as RGB, three times the same; "
        "--set channels=1 makes a network that takes one channel"
    )


def _ordered(part: Part, order: NDArray[np.int64]) -> Split:
    return Split(base=part.images, index=order, labels=part.labels[order])
