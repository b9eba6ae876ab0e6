"""Heights and widths of images as people write them: `224`, `48x192`. Height comes first, as in a tensor's shape."""

import re

from dgad_tk.common import UserError
from dgad_tk.strangers.number_text import NotANumberError, whole

SMALLEST, LARGEST = 4, 1024
"""Pixels of a side."""

Size = tuple[int, int]
"""(H, W)."""
Written = int | str
"""A size in a config and a record: a whole number for a square, else `HxW`."""

_HINT = "height x width in pixels: --image-size 48x192, or one number for a square"


def size_of(value: object) -> Size:
    """`224`, `48x192` (height x width) or a pair of numbers as a size.

    Raises:
        UserError: it is none, or a side is not from SMALLEST to LARGEST.
    """
    sides: list[object] = list(value) if isinstance(value, tuple | list) else [value]
    sides = [int(side) if isinstance(side, float) and side.is_integer() else side for side in sides]  # 48.0 of YAML
    hint = _HINT
    try:
        if isinstance(value, str):
            sides = [whole(side) for side in re.split("[xX\u00d7]", value)]
    except NotANumberError as error:
        sides, hint = [], error.hint or hint
    numbers = [side for side in sides if isinstance(side, int) and not isinstance(side, bool)]
    if not 1 <= len(numbers) == len(sides) <= 2:
        raise UserError(f"image_size must be height x width, such as 48x192 or 224, got '{value!s:.60}'", hint=hint)
    height, width = numbers[0], numbers[-1]
    if not (SMALLEST <= height <= LARGEST and SMALLEST <= width <= LARGEST):
        raise UserError(
            f"image_size must be from {SMALLEST} to {LARGEST} pixels a side, got {written((height, width))!s:.60}",
            hint=_HINT,
        )
    return height, width


def written(size: Size) -> Written:
    """A size as configs and records hold it: `224` for a square, else `48x192`."""
    height, width = size
    return height if height == width else f"{height}x{width}"


def read_written(value: object) -> Written | None:
    """A size in a config, in the one form that `written` gives it; None for no value. UserError as `size_of`."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "null", "none", "~")):
        return None
    return written(size_of(value))


def shown(size: Size) -> str:
    """`48x192`, also for a square: for messages."""
    return f"{size[0]}x{size[1]}"
