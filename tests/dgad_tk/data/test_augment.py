"""Augmentation, against a plain loop over the samples with pad, slice and flip."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dgad_tk.data import DATASETS, Augmentation
from dgad_tk.data.augment import augment, to_float
from dgad_tk.draws import Draws

DRAWS = Draws(seed=7)


def random_images(n: int, channels: int = 3, height: int = 8, width: int = 6) -> Tensor:
    values = np.random.default_rng(0).integers(1, 256, (n, channels, height, width), dtype=np.uint8)
    return torch.from_numpy(values)


def one_by_one(images: Tensor, augmentation: Augmentation, draws: Draws, index: Tensor, epoch: int) -> Tensor:
    """Pad, slice, flip, divide."""
    padding, (_, _, height, width) = augmentation.padding, images.shape
    results = []
    for image, number in zip(images, index, strict=True):
        corner = draws.integers("augment-crop", (2,), low=0, high=2 * padding + 1, index=number[None], epoch=epoch)
        top, left = corner[0].tolist()
        result = F.pad(image, (padding,) * 4)[:, top : top + height, left : left + width]
        if augmentation.flip and draws.integers("augment-flip", (1,), low=0, high=2, index=number[None], epoch=epoch):
            result = result.flip(2)
        results.append(result.to(torch.float32) / 255)
    return torch.stack(results)


@pytest.mark.parametrize("name", DATASETS)
def test_equals_the_plain_loop(name: str) -> None:
    images, index = random_images(40), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for epoch in (0, 3):
        options = {
            "augmentation": DATASETS[name].augmentation,
            "draws": DRAWS,
            "index": index,
            "epoch": epoch,
        }
        found = augment(images, **options)
        assert torch.equal(found, one_by_one(images, **options))
        assert found.dtype == torch.float32
        assert found.is_contiguous()


def test_depends_on_the_image_not_on_the_batch() -> None:
    images, index = random_images(32), torch.arange(100, 132)
    options = {"augmentation": Augmentation(padding=2, flip=True), "draws": DRAWS, "epoch": 5}
    whole = augment(images, index=index, **options)
    order = torch.tensor([17, 3, 30])
    assert torch.equal(augment(images[order], index=index[order], **options), whole[order])
    assert torch.equal(augment(images[4:5], index=index[4:5], **options), whole[4:5])


@pytest.mark.parametrize("changed", ["seed", "epoch", "index"])
def test_changes_with_seed_epoch_and_index(changed: str) -> None:
    images, index = random_images(32), torch.arange(32)
    options = {"augmentation": Augmentation(padding=2, flip=True), "draws": DRAWS, "index": index, "epoch": 0}
    other = {"seed": {"draws": Draws(seed=8)}, "epoch": {"epoch": 1}, "index": {"index": index + 32}}[changed]
    assert not torch.equal(augment(images, **options), augment(images, **{**options, **other}))


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_every_shift_and_flip_occurs_equally_often(padding: int) -> None:
    """A lit pixel left of the middle shows the shift; the one above its right neighbour shows the mirror."""
    n, size = 20_000, 11
    images = torch.zeros(n, 1, size, size, dtype=torch.uint8)
    images[:, 0, 5, 5] = 255
    images[:, 0, 5, 6] = 128
    options = {"draws": DRAWS, "index": torch.arange(n), "epoch": 0}
    moved = augment(images, augmentation=Augmentation(padding=padding, flip=True), **options)
    lit = (moved[:, 0] == 1).nonzero()
    assert len(lit) == n
    half_lit = (torch.abs(moved[:, 0] - 128 / 255) < 1e-6).nonzero()
    mirrored = half_lit[:, 2] < lit[:, 2]
    # Mirroring comes after the crop, and the pixel in the middle column is its own mirror image.
    seen = torch.stack([lit[:, 1] - 5, lit[:, 2] - 5, mirrored.long()], dim=1)
    kinds, counts = seen.unique(dim=0, return_counts=True)
    cells = 2 * (2 * padding + 1) ** 2
    assert len(kinds) == cells
    assert kinds[:, :2].abs().max() == padding
    expected = n / cells
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < cells - 1 + 5 * (2 * (cells - 1)) ** 0.5  # five standard deviations


def test_without_padding_and_flip_nothing_moves() -> None:
    images = random_images(5)
    same = augment(images, augmentation=Augmentation(0, False), draws=DRAWS, index=torch.arange(5), epoch=0)
    assert torch.equal(same, to_float(images))


def test_to_float_is_correctly_rounded() -> None:
    values = np.arange(256, dtype=np.uint8)
    expected = (values.astype(np.float64) / 255).astype(np.float32)
    np.testing.assert_array_equal(to_float(torch.from_numpy(values)).numpy(), expected)
    assert (float(to_float(torch.tensor([0]))), float(to_float(torch.tensor([255])))) == (0.0, 1.0)
