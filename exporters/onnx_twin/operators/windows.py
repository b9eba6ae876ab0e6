"""Kernels, strides, paddings and dilations, as convolutions and pooling share them."""

from typing import NamedTuple

from exporters.onnx_twin.node import NodeView

AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


class Window(NamedTuple):
    """A window that slides over the spatial axes; each list has one entry an axis.

    Attributes:
        pads: `(begin, end)` an axis; None for SAME padding, which depends on the sizes.
        lower: SAME padding puts an odd leftover at the beginning.
        ceil: the number of positions is rounded up.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[tuple[int, int]] | None
    lower: bool = False
    ceil: bool = False

    @property
    def span(self) -> list[int]:
        """What the window covers, gaps included."""
        return [dilation * (size - 1) + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True)]

    @property
    def symmetric(self) -> list[int] | None:
        """The padding where both ends have the same, so that torch's own will do; None elsewhere."""
        if self.pads is None or any(begin != end for begin, end in self.pads):
            return None
        return [begin for begin, _ in self.pads]


def window_of(node: NodeView, kernel: list[int]) -> Window:
    """The window that a node's attributes describe.

    Raises:
        UserError: they contradict each other.
    """
    rank = len(kernel)
    auto_pad = node.attribute("auto_pad", "NOTSET")
    strides = node.attribute("strides", [1] * rank)
    dilations = node.attribute("dilations", [1] * rank)
    pads = node.attribute("pads", [0] * 2 * rank)
    if auto_pad not in AUTO_PADS:
        node.refuse(f"attribute 'auto_pad' should be one of {', '.join(AUTO_PADS)}, got '{auto_pad}'")
    if rank not in (1, 2, 3) or not len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        node.refuse(f"expected 1 to 3 axes, each with its entries, got {kernel}, {strides}, {dilations}, {pads}")
    if min(kernel + strides + dilations) < 1:
        node.refuse(f"kernel, strides and dilations should be positive, got {kernel}, {strides}, {dilations}")
    if auto_pad == "VALID":
        pads = [0] * 2 * rank
    pairs = list(zip(pads[:rank], pads[rank:], strict=True))
    window = Window(kernel, strides, dilations, pairs, auto_pad == "SAME_LOWER", bool(node.attribute("ceil_mode", 0)))
    return _same(window) if auto_pad.startswith("SAME") else window


def paddings(window: Window, sizes: list[int]) -> list[tuple[int, int]]:
    """`(begin, end)` an axis for an input of `sizes`, so that rounding down gives the right count.

    The end may be negative: what is never looked at is cut off.
    """
    pairs = []
    for axis, (size, stride, span) in enumerate(zip(sizes, window.strides, window.span, strict=True)):
        if window.pads is None:
            total = max(0, (-(-size // stride) - 1) * stride + span - size)
            begin = total - total // 2 if window.lower else total // 2
            pairs.append((begin, total - begin))
            continue
        begin, end = window.pads[axis]
        if window.ceil:
            count = -(-(size + begin + end - span) // stride) + 1
            if (count - 1) * stride >= size + begin:
                count -= 1  # a window that starts in the padding behind the input does not count
            end = (count - 1) * stride + span - size - begin
        pairs.append((begin, end))
    return pairs


def flat(pairs: list[tuple[int, int]]) -> list[int]:
    """Paddings as `torch.nn.functional.pad` wants them: the last axis first."""
    return [pad for pair in reversed(pairs) for pad in pair]


def _same(window: Window) -> Window:
    """SAME padding as explicit one where it does not depend on the sizes: at stride 1."""
    if any(stride != 1 for stride in window.strides):
        return Window(window.kernel, window.strides, window.dilations, None, window.lower)
    totals = [span - 1 for span in window.span]
    begins = [total - total // 2 if window.lower else total // 2 for total in totals]
    pads = [(begin, total - begin) for begin, total in zip(begins, totals, strict=True)]
    return Window(window.kernel, window.strides, window.dilations, pads)
