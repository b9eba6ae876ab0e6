"""Kernels, strides, paddings and dilations, as convolutions and pooling share them."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.tracing import deferred


class Window(NamedTuple):
    """A window that slides over the spatial axes. Each list has one entry per axis.

    Attributes:
        pads: `(begin, end)` per axis; None for SAME padding, which depends on the sizes.
        lower: SAME padding puts an odd leftover at the beginning.
        ceil: the number of positions is rounded up.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[tuple[int, int]] | None
    lower: bool
    ceil: bool

    @property
    def span(self) -> list[int]:
        """What the window covers, gaps included."""
        return [dilation * (size - 1) + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True)]

    @property
    def symmetric(self) -> list[int] | None:
        """The padding where both ends have the same, so that torch's own will do; None elsewhere."""
        pads = self.pads
        if pads is None and max(self.strides) == 1:  # SAME padding does not depend on the sizes then
            pads = self.paddings(self.kernel)
        return None if pads is None or any(begin != end for begin, end in pads) else [begin for begin, _ in pads]

    def paddings(self, sizes: list[int]) -> list[tuple[int, int]]:
        """`(begin, end)` per axis for an input of `sizes`, so that rounding down gives the right count.

        The end may be negative: what is never looked at is cut off.
        """
        pairs = []
        for axis, (size, stride, span) in enumerate(zip(sizes, self.strides, self.span, strict=True)):
            if self.pads is None:
                total = max(0, (-(-size // stride) - 1) * stride + span - size)
                begin = total - total // 2 if self.lower else total // 2
                pairs.append((begin, total - begin))
                continue
            begin, end = self.pads[axis]
            if self.ceil:
                count = -(-(size + begin + end - span) // stride) + 1
                if (count - 1) * stride >= size + begin:
                    count -= 1  # a window that starts in the padding behind the input does not count
                end = (count - 1) * stride + span - size - begin
            pairs.append((begin, end))
        return pairs


def window_of(node: NodeView, kernel: list[int]) -> Window:
    """The window that a node's attributes describe.

    Raises:
        UserError: they contradict each other.
    """
    rank = len(kernel)
    auto_pad = node.choice("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    strides = node.attribute("strides", [1] * rank)
    dilations = node.attribute("dilations", [1] * rank)
    pads = node.attribute("pads", [0] * 2 * rank)
    if rank not in (1, 2, 3) or not len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        node.refuse(f"expected 1 to 3 axes, each with its entries, got {kernel}, {strides}, {dilations}, {pads}")
    if min(kernel + strides + dilations) < 1:
        node.refuse(f"kernel, strides and dilations should be positive, got {kernel}, {strides}, {dilations}")
    if auto_pad == "VALID":
        pads = [0] * 2 * rank
    pairs = None if auto_pad.startswith("SAME") else list(zip(pads[:rank], pads[rank:], strict=True))
    return Window(kernel, strides, dilations, pairs, auto_pad == "SAME_LOWER", node.attribute("ceil_mode", False))


def flat(pairs: list[tuple[int, int]]) -> list[int]:
    """Paddings as `torch.nn.functional.pad` wants them: the last axis first."""
    return [pad for pair in reversed(pairs) for pad in pair]


@deferred
def padded(x: Tensor, window: Window, *, lowest: bool = False) -> Tensor:
    """`x` `(N, C, ...)` with zeros, or the lowest value of its type, around it: the window needs no other padding."""
    value: float = 0
    if lowest:
        value = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    return F.pad(x, flat(window.paddings(list(x.shape[2:]))), value=value)
