"""Fixed, stratified splits and orders: a function of the labels only, never of the user's seed."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dgad_tk.data.spec import Labels, Part, Split

VALIDATION_SHARE = 10
"""One in this many training images is held out for validation ..."""
VALIDATION_MOST = 1000
"""... but at most this many: enough to tell checkpoints apart by some points, few enough to attack every epoch."""
NAMED = 10
"""How many classes a message names at most."""


def stratified_order(labels: Labels, purpose: str) -> NDArray[np.int64]:
    """A permutation of 0..N-1 whose every prefix, and so every stretch, is nearly class-proportional.

    Within its class each image gets a random rank; all are then merged by (rank + 1/2) / size of class.
    With classes of one size, two classes never differ by more than one image in any prefix.

    Args:
        labels: int64 `(N,)`.
        purpose: what the order is for; two purposes have unrelated orders.
    """
    key = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:16], "little")
    # Raw words: numpy keeps a bit generator's stream for ever, but may change what Generator makes of it.
    words = np.random.Philox(key=key).random_raw(2 * len(labels))
    within, between = words[: len(labels)], words[len(labels) :]

    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.lexsort((within, classes))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # Ties are settled at random: a prefix shorter than the list of classes is not always the first ones.
    return np.lexsort((between, (rank + 0.5) / sizes[classes])).astype(np.int64)


def make_splits(parts: Mapping[str, Part]) -> tuple[Split, Split, Split]:
    """Train, validation and test; validation is held out of train where the data have none of their own.

    Every class keeps an image to train on. Where no class has one to spare, validation and training share images.
    """
    train_order = stratified_order(parts["train"].labels, "train")
    if "val" in parts:
        val = _ordered(parts["val"], stratified_order(parts["val"].labels, "val"))
    else:
        wanted = max(1, min(VALIDATION_MOST, round(len(train_order) / VALIDATION_SHARE)))
        held_out = _to_spare(parts["train"].labels[train_order])[:wanted]
        val = _ordered(parts["train"], train_order[held_out] if len(held_out) else train_order[:wanted])
        train_order = np.delete(train_order, held_out)
    test = _ordered(parts["test"], stratified_order(parts["test"].labels, "test"))
    return _ordered(parts["train"], train_order), val, test


def _to_spare(labels: Labels) -> NDArray[np.int64]:
    """The positions of all images but the last one of each class, ascending."""
    _, last = np.unique(labels[::-1], return_index=True)
    return np.setdiff1d(np.arange(len(labels)), len(labels) - 1 - last)


def shares_images(train: Split, val: Split) -> bool:
    """Whether validation uses images that are trained on, because there are no others."""
    return val.base is train.base and bool(np.isin(val.index, train.index).any())


def without_images(split: Split, classes: Sequence[str]) -> str:
    """A sentence about the classes that have no image in a split; empty if every class has one."""
    lost = sorted(set(range(len(classes))) - set(np.unique(split.labels).tolist()))
    if not lost:
        return ""
    names = ", ".join(classes[k] for k in lost[:NAMED]) + (", ..." if len(lost) > NAMED else "")
    return f"classes without an image to train on: {len(lost):,} of {len(classes):,} ({names})"


def _ordered(part: Part, order: NDArray[np.int64]) -> Split:
    return Split(base=part.images, index=order, labels=part.labels[order])
