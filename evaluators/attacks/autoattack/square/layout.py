"""Where squares lie in a matrix of images, and the pattern that fills them in L2 and L1."""

import torch
from torch import Tensor

from evaluators.attacks.native import images_of_rows, pixel_rows


class Layout:
    """Images `(N, C, H, W)` as rows `(N, C*H*W)`, in the memory order that the model reads fastest.

    Args:
        shape: (C, H, W).
        channels_last: the channels of a pixel are next to each other.
    """

    def __init__(self, shape: tuple[int, int, int], *, channels_last: bool) -> None:
        self.channels, self.height, self.width = shape
        self.channels_last = channels_last

    def rows(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C*H*W)`, contiguous."""
        return (pixel_rows(images) if self.channels_last else images.flatten(1)).contiguous()

    def images(self, rows: Tensor) -> Tensor:
        """`(N, C*H*W)` to `(N, C, H, W)`, the same memory."""
        shape = (self.channels, self.height, self.width)
        return images_of_rows(rows, shape) if self.channels_last else rows.view(-1, *shape)

    def corners(self, u: Tensor, side: int) -> Tensor:
        """Top left corners for uniform numbers `(..., 2)`, int64 row and column `(..., 2)`."""
        room = torch.tensor([self.height - side, self.width - side], dtype=u.dtype, device=u.device)
        return (u * room).long()

    def squares(self, corners: Tensor, side: int) -> Tensor:
        """Positions in a row of squares at `corners` `(..., 2)`, int64 `(..., C, side * side)`."""
        pixel, channel = (self.channels, 1) if self.channels_last else (1, self.height * self.width)
        line = torch.arange(side, device=corners.device)
        within = (line[:, None] * self.width + line).flatten() * pixel
        box = torch.arange(self.channels, device=corners.device)[:, None] * channel + within
        start = (corners[..., 0] * self.width + corners[..., 1]) * pixel
        return start[..., None, None] + box


def pattern(side: int, p: int) -> Tensor:
    """Two hills of opposite sign above each other, of norm 1, float32 `(side, side)`.

    It is eta of section 3.4 (equation 2): hills of nested rectangles, from their middle outward, with weights 1 / k^2.
    For p = 1 the weights are 1 / k^4, as in the authors' package.
    """
    weights = 1 / torch.arange(1, side // 2 + 2, dtype=torch.float64) ** (2 * (3 - p))
    tails = weights.flip(0).cumsum(0).flip(0)  # of all rectangles around a ring

    def hill(height: int) -> Tensor:
        row, column = torch.arange(height) - height // 2, torch.arange(side) - side // 2
        rings = torch.maximum(row.abs()[:, None], column.abs()[None, :])
        values = tails[rings]
        return values / torch.linalg.vector_norm(values, ord=p) if height else values

    both = torch.cat([hill(side // 2), -hill(side - side // 2)])
    whole: Tensor = both / torch.linalg.vector_norm(both, ord=p)
    return whole.float()
