"""Types of a dataset: its row in the table, its decoded arrays, its three splits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgad_tk.common import UserError
from dgad_tk.data.images.request import Request
from dgad_tk.data.images.resize import SQUEEZE

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Shape = tuple[int, int, int]

USUAL_PIXELS = 64 * 64
"""Of an image for whose size numbers of images in a batch are made."""

GREY_LEVEL = 1 / 255
"""One step of an 8-bit image, in units of [0, 1]."""


@dataclass(frozen=True)
class Augmentation:
    """Random crop and flip of training images.

    Attributes:
        padding: zero pixels around the image before it is cropped to its own size.
        flip: mirror half of the images left to right.
    """

    padding: int
    flip: bool


@dataclass(frozen=True, eq=False)
class Part:
    """Decoded images in the order of their files: a whole part of a dataset, or a piece of it.

    Attributes:
        images: uint8 `(N, C, H, W)`, memory-mapped where they come from the cache.
        labels: int64 `(N,)`.
    """

    images: Pixels
    labels: Labels


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a loader returns.

    Attributes:
        classes: class names in the order of the labels.
        parts: "train", "test" and, where the data have their own, "val".
        sha256: `cache.content_sha256` of them.
        notes: a sentence per kind of file that was found and not used. The cache keeps none: the files may change.
        stretch: as in Dataset.
    """

    classes: list[str]
    parts: Mapping[str, Part]
    sha256: str
    notes: tuple[str, ...] = ()
    stretch: float = 1.0


@dataclass(frozen=True, eq=False)
class Split:
    """Images of one split in its fixed stratified order. Pixels are read only by `take`.

    Position p is the same image in every run, for every seed and every number of images.

    Attributes:
        base: uint8 `(M, C, H, W)`, all images of the part that this split is cut from.
        index: int64 `(N,)`, rows of `base`.
        labels: int64 `(N,)`, of the rows in `index`.
    """

    base: Pixels = field(repr=False)
    index: NDArray[np.int64] = field(repr=False)
    labels: Labels = field(repr=False)

    def __len__(self) -> int:
        return len(self.index)

    def take(self, positions: NDArray[np.int64] | Sequence[int] | slice) -> Pixels:
        """A copy of the images at these positions, uint8 `(n, C, H, W)`, contiguous."""
        return np.ascontiguousarray(self.base[self.index[positions]])

    def at_once(self, most: int) -> int:
        """`most` images, or where they are larger than 64x64 as many, from 1, as have no more pixels than these."""
        pixels = int(self.base.shape[2] * self.base.shape[3])
        return max(1, min(most, most * USUAL_PIXELS // pixels))

    def subset(self, n: int) -> "Split":
        """The first `n` >= 1 images, nearly class-proportional; all of them where there are fewer."""
        if n < 1:
            raise UserError(f"a number of images must be at least 1, got {n}", hint="leave it out to use all of them")
        return replace(self, index=self.index[:n], labels=self.labels[:n])


@dataclass(frozen=True)
class DatasetSpec:
    """A row of the DATASETS table. Augmentation and radii default to those of CIFAR.

    Attributes:
        description: one line for `dgad list datasets`.
        load: maps (data_dir or None, request) to decoded arrays. Raises NotThereError for missing files, UserError
            for damaged ones.
        augmentation: of training images.
        eps: default radius per norm, as a fraction of 1.
        training: settings of a TrainConfig that differ from the paper's for CIFAR, by name.
        fetch: fetches missing files into a folder, or raises UserError; None where there is nothing to fetch.
        image_size: default of `--image-size`; 0 where the data have one size and number of channels of their own.
    """

    description: str
    load: Callable[[Path | None, Request], Decoded]
    augmentation: Augmentation = Augmentation(padding=4, flip=True)
    eps: Mapping[str, float] = field(default_factory=lambda: {"linf": 8 / 255, "l2": 0.5, "l1": 12.0})
    training: Mapping[str, Any] = field(default_factory=dict)
    fetch: Callable[[Path], None] | None = None
    image_size: int = 0


@dataclass(frozen=True, eq=False)
class Dataset:
    """A loaded dataset.

    Attributes:
        spec: its row.
        name: of the row.
        classes: class names in the order of the labels.
        train: the training split without `val`. It may be empty, as other splits, if one split alone was asked for.
        val: for choosing a checkpoint; held out of the training data. Where no class has an image to spare, it shares
            images with `train`, and a note says so.
        test: for reporting.
        options: arguments with which `load_dataset` loads the same again: `data_dir`, `image_size`, and `resize` and
            `channels` where they are not the defaults.
        sha256: of the decoded content.
        notes: sentences about these data for the user.
        stretch: by how much the middle one of some of the pictures was stretched to the shape of these images, in one
            direction over the other; 1 for none.
    """

    spec: DatasetSpec
    name: str
    classes: list[str]
    train: Split
    val: Split
    test: Split
    options: dict[str, str | int]
    sha256: str
    notes: tuple[str, ...] = ()
    stretch: float = 1.0

    @property
    def shape(self) -> Shape:
        """(C, H, W)."""
        _, channels, height, width = self.train.base.shape
        return channels, height, width

    @property
    def resize(self) -> str:
        """How pictures got this shape, a row of RESIZES; empty for images of one size."""
        return str(self.options.get("resize", SQUEEZE)) if self.spec.image_size else ""

    @property
    def train_and_val(self) -> Split:
        """`train` and, where it was cut from the same images, `val`: for runs that hold no images out."""
        if self.val.base is not self.train.base:
            return self.train
        fresh = ~np.isin(self.val.index, self.train.index)  # all, unless no image was to spare
        index = np.concatenate([self.val.index[fresh], self.train.index])
        return replace(self.train, index=index, labels=np.concatenate([self.val.labels[fresh], self.train.labels]))

    @property
    def splits(self) -> dict[str, Split]:
        """By name, as `--split` takes it."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel over the training split, in units of [0, 1].

        A deviation is at least GREY_LEVEL, so that dividing by it makes no noise of a channel that hardly varies.
        """
        mean, std = self._spread
        return tuple(mean.tolist()), tuple(np.maximum(std, GREY_LEVEL).tolist())

    @property
    def flat_channels(self) -> tuple[int, ...]:
        """Channels, from 0, whose deviation is below GREY_LEVEL."""
        return tuple(np.flatnonzero(self._spread[1] < GREY_LEVEL).tolist())

    @cached_property
    def _spread(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        total = np.zeros(self.shape[0])
        squares = np.zeros(self.shape[0])
        size = self.train.at_once(1024)
        for start in range(0, len(self.train), size):  # in pieces: the pixels stay memory-mapped
            block = self.train.take(slice(start, start + size)) / 255.0
            total += block.sum(axis=(0, 2, 3))
            squares += np.square(block).sum(axis=(0, 2, 3))
        count = len(self.train) * self.shape[1] * self.shape[2]
        mean = total / count
        return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))
