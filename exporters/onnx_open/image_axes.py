"""Which axes of an input are an image's channels, height and width: told by their sizes and by the known images."""

from collections.abc import Sequence

import numpy as np

from dgad_tk.artifacts.preprocessing import Layout
from dgad_tk.common import UserError

CHANNELS = (1, 3, 4)
LAYOUTS: tuple[Layout, ...] = ("nchw", "nhwc")
Shape = tuple[int, int, int]


def lacks_batch_axis(sizes: Sequence[int | None], known: Shape) -> bool:
    """Whether an input of these sizes, None for open ones, is one of the known images, with no axis in front."""
    rest = sizes[1:]
    if rest and (len(rest) == 3 or holds(rest, known)):
        return False
    return holds(sizes, known) or bool(fitting_layouts(sizes, known))


def fitting_layouts(axes: Sequence[int | None], known: Shape) -> list[Layout]:
    """The orders in which axes, None for open ones, may be the three of the known images."""
    if len(axes) != 3:
        return []
    read = {layout: zip(as_nchw(axes, layout), known, strict=True) for layout in LAYOUTS}
    return [layout for layout, pairs in read.items() if all(size in (None, own) for size, own in pairs)]


def which_layout(declared: Sequence[int | None], known: Shape | None, where: str) -> Layout:
    """Which of three axes are the channels.

    Raises:
        UserError: it can be the first and the last.
    """
    fitting = fitting_layouts(declared, known) if known else []
    if len(fitting) == 1:
        return fitting[0]
    first, middle, last = declared
    if last not in CHANNELS:
        return "nchw"
    if first not in CHANNELS:
        return "nhwc"
    # Both could count channels: as a rule images are square.
    if (middle == last) != (first == middle):
        return "nchw" if middle == last else "nhwc"
    raise UserError(
        f"'{where}' takes images of {tuple(declared)}: the channels may be the first of these or the last",
        hint="--layout nchw or --layout nhwc",
    )


def as_nchw(declared: Sequence[int | None], layout: Layout) -> tuple[int | None, ...]:
    return tuple(declared) if layout == "nchw" else (declared[2], declared[0], declared[1])


def is_flat(declared: Sequence[int | None], known: Shape | None) -> bool:
    """Whether three axes are one with two more of size 1, and the known images are not like that."""
    if known is None or sum(size == 1 for size in declared) < 2:
        return False
    return holds(declared, known) and not fitting_layouts(declared, known)


def holds(declared: Sequence[int | None], known: Shape) -> bool:
    """Whether these sizes hold the pixels of an image; one may be open."""
    pixels, sized = int(np.prod(known)), int(np.prod([size for size in declared if size is not None]))
    left_open = sum(size is None for size in declared)
    return sized == pixels if not left_open else left_open == 1 and pixels % sized == 0


def in_three_axes(declared: Sequence[int | None], layout: Layout, known: Shape | None, where: str) -> Shape:
    """(C, H, W), what is left open taken from the known images.

    Raises:
        UserError: there are none, or they contradict what is declared.
    """
    channels, height, width = sizes = as_nchw(declared, layout)
    if channels is not None and height is not None and width is not None:
        return channels, height, width
    shown = tuple("any" if size is None else size for size in sizes)
    if known is None:
        raise UserError(
            f"'{where}' leaves its input's shape open: {_listed(shown)} (C, H, W)",
            hint="name the images with --dataset",
        )
    if layout not in fitting_layouts(declared, known):
        raise UserError(
            f"'{where}' takes images of {_listed(shown)} (C, H, W), not of {known}",
            hint="name the images it was trained on with --dataset, or --image-size for an image folder",
        )
    return known


def _listed(sizes: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, sizes))})"
