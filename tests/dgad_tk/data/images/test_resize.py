"""Each way to a new shape, against Pillow's ImageOps, torchvision and numbers counted by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode, v2

from dgad_tk.data.images.request import Request
from dgad_tk.data.images.resize import RESIZES

Pixels = NDArray[np.uint8]


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def smooth(height: int, width: int) -> Image.Image:
    down, across = np.linspace(0, 200, height)[:, None], np.linspace(0, 50, width)[None]
    return Image.fromarray((down + across).astype(np.uint8)).convert("RGB")


def brought(way: str, image: Image.Image, size: tuple[int, int]) -> Pixels:
    found: Pixels = np.asarray(RESIZES[way].bring(image, size))
    assert found.shape[:2] == size
    return found


SHAPES = [((20, 60), (6, 10)), ((60, 20), (6, 10)), ((37, 53), (16, 16)), ((7, 9), (24, 8)), ((5, 5), (5, 5))]


@pytest.mark.parametrize(("before", "after"), SHAPES)
def test_squeeze_is_a_plain_resize(before: tuple[int, int], after: tuple[int, int]) -> None:
    expected = noise(*before).resize(after[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(brought("squeeze", noise(*before), after), np.asarray(expected))


@pytest.mark.parametrize(("before", "after"), SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_pad_is_that_of_pillow(before: tuple[int, int], after: tuple[int, int], channels: int) -> None:
    image = noise(*before, channels)
    expected = ImageOps.pad(image, after[::-1], method=Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(brought("pad", image, after), np.asarray(expected))


def test_pad_by_hand() -> None:
    """4 x 8 white pixels in 6 x 6: 3 rows of them, with one black row above and two below, or two above and one."""
    found = brought("pad", Image.new("L", (8, 4), 255), (6, 6))
    rows = found.max(axis=1)
    assert sorted(rows.tolist()) == [0, 0, 0, 255, 255, 255]
    assert set(rows[2:4].tolist()) == {255}
    assert (found == rows[:, None]).all()


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 1)])
def test_a_line_does_not_vanish(shape: tuple[int, int]) -> None:
    assert brought("pad", Image.new("L", shape[::-1], 255), (4, 4)).max() == 255
    assert brought("crop", Image.new("L", shape[::-1], 255), (4, 4)).min() == 255


@pytest.mark.parametrize(("before", "after"), [((60, 96), (24, 24)), ((96, 60), (24, 24)), ((80, 80), (16, 16))])
def test_crop_is_that_of_torchvision(before: tuple[int, int], after: tuple[int, int]) -> None:
    """`Resize` of the shorter side and `CenterCrop`; at the cut, its filter sees a pixel beyond."""
    steps = [v2.Resize(min(after), InterpolationMode.BILINEAR), v2.CenterCrop(list(after))]
    expected = np.asarray(v2.Compose(steps)(smooth(*before))).astype(int)
    difference = np.abs(brought("crop", smooth(*before), after).astype(int) - expected)
    assert difference[1:-1, 1:-1].max() <= 1
    assert difference.max() <= 3


def test_crop_by_hand() -> None:
    """Columns of 0 to 11 in a picture of 4 x 12: of 4 x 4, the middle four are left as they are."""
    columns = np.tile(np.arange(12, dtype=np.uint8), (4, 1))
    np.testing.assert_array_equal(brought("crop", Image.fromarray(columns), (4, 4)), columns[:, 4:8])
    np.testing.assert_array_equal(brought("crop", Image.fromarray(columns.T), (4, 4)), columns.T[4:8])


@pytest.mark.parametrize(
    ("way", "picture", "size", "factor"),
    [
        ("squeeze", (60, 80), (32, 32), 4 / 3),
        ("squeeze", (80, 60), (32, 32), 4 / 3),
        ("squeeze", (48, 192), (24, 96), 1.0),
        ("squeeze", (32, 32), (8, 32), 4.0),
        ("crop", (32, 32), (8, 32), 1.0),
        ("pad", (32, 32), (8, 32), 1.0),
    ],
)
def test_how_much_things_are_stretched(
    way: str, picture: tuple[int, int], size: tuple[int, int], factor: float
) -> None:
    assert Request(size, way).stretch(*picture) == pytest.approx(factor)
