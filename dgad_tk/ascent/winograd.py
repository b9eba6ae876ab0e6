"""3x3 convolutions of many channels with a quarter of the multiplications, by Winograd's minimal filtering.

Lavin & Gray, CVPR 2016, https://arxiv.org/abs/1509.09308, F(4x4, 3x3): a tile of 4x4 results is found from 6x6 values
by 36 multiplications for each pair of channels in place of 144. Tiles and kernels are transformed once for all
channels, which is why it pays for many channels only. In float32 the result is 2 to 4 times as far from the exact one
as that of a direct convolution, about 5e-6 of the largest value.

It is written as products of matrices, which torch computes at the processor's peak.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

TILE, WINDOW = 4, 6
"""Side of a tile of results, and of the values that it depends on."""
CHANNELS = 128, 512
"""Fewer channels gain nothing; with more, kernels that are four times as large as before would take too much memory."""
LEAST = 8
"""Tiles in a batch. Of fewer, reading the larger kernels takes longer than is saved."""

# For the points 0, 1, -1, 2, -2 and infinity.
_OF_WINDOW = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OF_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_TO_TILE = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def pays(weight: Tensor) -> bool:
    """Whether kernels `(O, I, h, w)` of a convolution with stride 1 and padding 1 are faster this way."""
    least, most = CHANNELS
    return tuple(weight.shape[2:]) == (3, 3) and all(least <= count <= most for count in weight.shape[:2])


def fits(x: Tensor) -> bool:
    """Whether maps `(N, C, H, W)` are made of whole tiles, and of enough of them."""
    height, width = x.shape[2:]
    return height % TILE == 0 == width % TILE and len(x) * height * width >= LEAST * TILE**2


def transformed(weight: Tensor) -> Tensor:
    """Kernels `(O, I, 3, 3)` as `convolved` takes them, `(36, I, O)`."""
    out, channels = weight.shape[:2]
    flat = weight.permute(2, 3, 1, 0).reshape(9, -1).double()
    return (_both_ways(_OF_KERNEL) @ flat).to(weight.dtype).view(WINDOW**2, channels, out)


def convolved(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution with padding 1, `(N, I, H, W)` to `(N, O, H, W)`, channels-last.

    Args:
        kernels: `transformed`.
        bias: `(O,)`.
    """
    count, channels, height, width = x.shape
    rows, columns, out = height // TILE, width // TILE, kernels.shape[2]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE)  # (N, rows, columns, I, 6, 6)
    flat = windows.permute(4, 5, 0, 1, 2, 3).reshape(WINDOW**2, -1)
    values = _both_ways(_OF_WINDOW).to(x) @ flat
    products = torch.bmm(values.view(WINDOW**2, -1, channels), kernels)
    tiles = (_both_ways(_TO_TILE).to(x) @ products.view(WINDOW**2, -1)).view(TILE, TILE, count, rows, columns, out)
    # A ReLU may write into the result, which therefore is no view of another tensor.
    result = torch.empty(count, out, height, width, dtype=x.dtype, memory_format=torch.channels_last)
    places = result.permute(0, 2, 3, 1).view(count, rows, TILE, columns, TILE, out)
    torch.add(tiles.permute(2, 3, 0, 4, 1, 5), x.new_zeros(1) if bias is None else bias, out=places)
    return result


@cache
def _both_ways(matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """The matrix that transforms rows and columns at once, float64."""
    along = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(along, along)
