"""Augmentation, against a plain loop over the samples with pad, slice and flip."""

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

from dgad_tk.common import UserError
from dgad_tk.data import DATASETS, Augmentation
from dgad_tk.data.augment import AUGMENTS, augment, augment_by, chosen_augments, to_float
from dgad_tk.data.augment.pictures import _part
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


# By name ------------------------------------------------------------------------------------------------------------


def by_name(names: str, images: Tensor, index: Tensor, *, epoch: int = 0, draws: Draws = DRAWS) -> Tensor:
    chosen = chosen_augments(names.split(","))
    assert chosen is not None
    return augment_by(chosen, images, draws=draws, index=index, epoch=epoch)


EVERY = ",".join(AUGMENTS)


@pytest.mark.parametrize("names", [*AUGMENTS, EVERY])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_row_belongs_to_the_image(names: str, channels: int) -> None:
    """To its index, the epoch and the seed, and to no other image of the batch; float32 in [0, 1], of its shape."""
    images, index = random_images(24, channels, 20, 30), torch.arange(100, 124)
    whole = by_name(names, images, index)
    assert whole.shape == images.shape
    assert whole.dtype == torch.float32
    assert whole.is_contiguous()
    assert 0 <= whole.min() <= whole.max() <= 1
    order = torch.tensor([17, 3, 21])
    assert torch.equal(by_name(names, images[order], index[order]), whole[order])
    assert torch.equal(by_name(names, images[4:5], index[4:5]), whole[4:5])
    for other in (
        by_name(names, images, index, epoch=1),
        by_name(names, images, index + 24),
        by_name(names, images, index, draws=Draws(8)),
    ):
        changed = (other != whole).flatten(1).any(1).double().mean()
        assert changed > (0.2 if names == "flip" else 0.8)


def test_every_row_changes_images_and_an_amount_of_0_does_not() -> None:
    images = random_images(24, 3, 20, 30)
    for name, row in AUGMENTS.items():
        assert not torch.equal(by_name(name, images, torch.arange(24)), to_float(images)), name
        if row.least == 0:  # else the row always changes something
            unchanged = by_name(f"{name}:0", images, torch.arange(24))
            torch.testing.assert_close(unchanged, to_float(images), rtol=1e-5, atol=1e-5)


def test_flips_and_shifts_are_those_of_slices() -> None:
    images, index = random_images(500, 3, 16, 8), torch.arange(500)
    before = to_float(images)
    mirrored = by_name("flip:0.25", images, index)
    flips = [torch.equal(after, image.flip(-1)) for after, image in zip(mirrored, before, strict=True)]
    assert all(torch.equal(after, image) or flip for after, image, flip in zip(mirrored, before, flips, strict=True))
    assert 0.25 * 500 - 5 * 10 < sum(flips) < 0.25 * 500 + 5 * 10
    padded = F.pad(before, (1, 1, 2, 2))  # an eighth of 8 and of 16
    windows = torch.stack([padded[:, :, i : i + 16, j : j + 8] for i in range(5) for j in range(3)], dim=1)
    shifted = by_name("crop", images, index)[:, None]
    found = (windows == shifted).flatten(2).all(2)
    assert bool(found.any(1).all())
    counts = found.double().sum(0)
    assert len(counts) == 15
    assert ((counts - 500 / 15).abs() < 5 * (500 / 15) ** 0.5).all()


def test_parts_are_those_that_torchvision_cuts() -> None:
    """Each image is a part of itself, resized by torchvision: found by trying all parts of the sizes that may be."""
    n, side = 12, 12
    images, index = random_images(n, 1, side, side), torch.arange(n)
    found = by_name("random-resized-crop:0.5", images, index)
    areas = []
    for image, after in zip(to_float(images), found, strict=True):
        fits = [
            h * w / side**2
            for h in range(6, side + 1)
            for w in range(6, side + 1)
            for top in range(side - h + 1)
            for left in range(side - w + 1)
            if torch.allclose(functional.resized_crop(image, top, left, h, w, [side, side]), after, atol=1e-6)
        ]
        assert fits
        areas.append(fits[0])
    assert min(areas) >= 0.5 - 1 / side
    assert max(areas) - min(areas) > 0.2


def test_parts_keep_the_shape_of_the_image() -> None:
    """Of a long image too: a part that is 4/3 times as wide, or as high, for its area, and no more."""
    parts = [_part(20, 200, 0.3, numbers) for numbers in torch.rand(400, 4).tolist()]
    fitting = [part for part in parts if part]
    assert len(fitting) > 300
    ratios = torch.tensor([(w / 200) / (h / 20) for _, _, h, w in fitting])
    assert ratios.min() > 0.65
    assert ratios.max() < 1.5
    assert ratios.std() > 0.1
    assert all(0 <= top <= 20 - h and 0 <= left <= 200 - w for top, left, h, w in fitting)


def test_colours_are_those_that_torchvision_makes() -> None:
    """One image in each of the 24 orders of torchvision's four adjustments, with factors found by the numbers drawn."""
    images, index = random_images(8, 3, 6, 6), torch.arange(8)
    found = by_name("colour-jitter:0.3", images, index)
    u = DRAWS.uniform("augment-colour-jitter-colour", (8,), index=index, epoch=0)
    orders = set()
    for image, after, numbers in zip(to_float(images), found, u, strict=True):
        factors = 0.3 * (2 * numbers[:4] - 1)
        fits = []
        for order in permutations(range(4)):
            changed = image
            for which in order:
                if which == 0:
                    changed = functional.adjust_brightness(changed, float(1 + factors[0]))
                elif which == 1:
                    changed = functional.adjust_contrast(changed, float(1 + factors[1]))
                elif which == 2:
                    changed = functional.adjust_saturation(changed, float(1 + factors[2]))
                else:
                    changed = functional.adjust_hue(changed, float(factors[3] / 4))
            if torch.allclose(changed, after, atol=1e-6):
                fits.append(order)
        assert fits
        orders.add(fits[0])
        assert (after - image).abs().mean() > 0.005
    assert len(orders) > 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("flop", "unknown augmentation 'flop'"),
        ("flip,crop,flip", "names 'flip' twice"),
        ("flip:much", "augment 'flip' takes a number, got 'much'"),
        ("crop:1.5", "augment 'crop' takes 0 to 1, got 1.5"),
        ("random-resized-crop:0", "takes 0.01 to 1, got 0"),
        ("none,flip", "'none' leaves images as they are, and stands alone"),
    ],
)
def test_names_that_are_none(names: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen_augments(names.split(","))


def test_none_leaves_images_alone_and_nothing_is_the_datasets_own() -> None:
    images = random_images(5)
    assert torch.equal(by_name("none", images, torch.arange(5)), to_float(images))
    assert chosen_augments(()) is None
