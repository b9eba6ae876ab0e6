"""How far a change of one square reaches through the convolutions of a network, layer by layer."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Along one axis of a map: what changes, for each place where the square can begin.

    Attributes:
        start: int64 `(places,)`.
        size: the same for all places.
        extent: of the whole map.
    """

    start: Tensor
    size: int
    extent: int

    @classmethod
    def of_square(cls, side: int, extent: int) -> Self:
        """A square of `side` pixels, at any place of an image."""
        return cls(torch.arange(extent - side + 1), side, extent)

    def through(self, kernel: int, stride: int, padding: int, extent: int) -> Self:
        """What changes behind a convolution, in a map of `extent`."""
        first = -((kernel - 1 - padding - self.start) // stride)  # rounded up
        last = (self.start + self.size - 1 + padding) // stride
        return self._between(first.clamp(min=0), last.clamp(max=extent - 1), extent)

    def together(self, other: Self) -> Self:
        """What changes in a sum of two maps."""
        first = torch.minimum(self.start, other.start)
        last = torch.maximum(self.start + self.size, other.start + other.size) - 1
        return self._between(first, last, self.extent)

    def read_by(self, kernel: int, stride: int, padding: int) -> Self:
        """What a convolution reads of the map before it to give this part; it may begin at -`padding`."""
        return type(self)(self.start * stride - padding, (self.size - 1) * stride + kernel, 0)

    def same(self, other: Self) -> bool:
        return self.size == other.size and bool(torch.equal(self.start, other.start))

    @classmethod
    def _between(cls, first: Tensor, last: Tensor, extent: int) -> Self:
        size = min(max(int((last - first).max()) + 1, 1), extent)
        return cls(first.clamp(max=extent - size), size, extent)


@dataclass(frozen=True)
class Window:
    """Rows and columns that change."""

    rows: Span
    columns: Span

    @property
    def share(self) -> float:
        """Of the whole map."""
        return self.pixels / (self.rows.extent * self.columns.extent)

    @property
    def pixels(self) -> int:
        return self.rows.size * self.columns.size

    @property
    def whole(self) -> "Window":
        """The map that it is a part of."""
        spans = (Span(torch.zeros_like(span.start), span.extent, span.extent) for span in (self.rows, self.columns))
        return Window(*spans)

    def same(self, other: "Window") -> bool:
        return self.rows.same(other.rows) and self.columns.same(other.columns)

    def together(self, other: "Window") -> "Window":
        return Window(self.rows.together(other.rows), self.columns.together(other.columns))


def positions(part: Window, changed: Window) -> Tensor:
    """Where the pixels of `part` of a map lie in its store, for each place of the square: int64 `(places, pixels)`.

    A store has the map's pixels as they were, then those of `changed` as they are now, then one of zeros, which stands
    for what is outside the map.
    """
    height, width = changed.rows.extent, changed.columns.extent
    row, inside_rows, new_row, row_changed = _along(part.rows, changed.rows)
    column, inside_columns, new_column, column_changed = _along(part.columns, changed.columns)
    inside = inside_rows[:, None, :, None] & inside_columns[None, :, None, :]
    is_new = row_changed[:, None, :, None] & column_changed[None, :, None, :]
    old = row[:, None, :, None] * width + column[None, :, None, :]
    new = height * width + new_row[:, None, :, None] * changed.columns.size + new_column[None, :, None, :]
    found = torch.where(is_new, new, torch.where(inside, old, height * width + changed.pixels))
    return found.flatten(2).flatten(0, 1)


def as_stored(window: Window) -> Tensor:
    """Positions of a window in a map by itself, int64 `(places, pixels)`."""
    unchanged = (Span(torch.zeros_like(span.start), 0, span.extent) for span in (window.rows, window.columns))
    return positions(window, Window(*unchanged))


def _along(part: Span, changed: Span) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    at = part.start[:, None] + torch.arange(part.size)
    new = at - changed.start[:, None]
    return at, (at >= 0) & (at < changed.extent), new, (new >= 0) & (new < changed.size)
