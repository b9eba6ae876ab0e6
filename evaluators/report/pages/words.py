"""Figures and names as a reader sees them."""

import unicodedata
from collections.abc import Sequence

from dgad_tk.strangers.names import shown
from dgad_tk.strangers.number_text import format_fraction
from evaluators.results import Interval

MARK = 'content="dgad-tk '
"""What every page of ours has near its beginning, and files of other people have not."""
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_MARKS = {"\u200e", "\u200f", "\u061c", "\ufeff"}
MINUS = "\N{MINUS SIGN}"


def percent(share: float, decimals: int = 1) -> str:
    """A share as `71.2 %`. What is not quite all or nothing never rounds to it: `above 99.9 %`, `under 0.1 %`."""
    step = 10.0**-decimals
    text = f"{100 * share:.{decimals}f}"
    if share < 1 and float(text) >= 100:
        return f"above {100 - step:.{decimals}f} %"
    if share > 0 and float(text) <= 0:
        return f"under {step:.{decimals}f} %"
    return f"{text} %"


def interval(ends: Interval, decimals: int = 1) -> str:
    """The ends of an interval of shares, in per cent: `35.4 to 41.5`."""
    return f"{100 * ends[0]:.{decimals}f} to {100 * ends[1]:.{decimals}f}"


def points(difference: float, decimals: int = 1) -> str:
    """A difference of shares in points, with its sign: `+1.3`, or `-0.4` with a minus sign."""
    text = f"{100 * abs(difference):.{decimals}f}"
    return text if float(text) == 0 else f"{MINUS if difference < 0 else '+'}{text}"


def count(number: int, noun: str = "") -> str:
    """`1,000 images` or `1 image`; without a noun, the number with commas."""
    text = f"{number:,}"
    if not noun:
        return text
    if number != 1:
        noun += "es" if noun.endswith("s") else "s"
    return f"{text} {noun}"


def duration(seconds: float) -> str:
    """`0.4 s`, `40 s`, `34 min` or `5.2 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def size(count_of_bytes: int) -> str:
    """`325 kB` or `12.3 MB`."""
    if count_of_bytes < 1_000_000:
        return f"{max(count_of_bytes, 1) / 1000:,.0f} kB" if count_of_bytes >= 1000 else f"{count_of_bytes} bytes"
    return f"{count_of_bytes / 1e6:,.1f} MB"


def plain(text: object) -> str:
    """Text of a stranger on one line: control characters and marks that turn the direction of writing are spelt out."""
    return "".join(
        f"\\u{ord(char):04x}" if unicodedata.bidirectional(char) in _TURNING or char in _MARKS else char
        for char in shown(str(text))
    )


def name(text: object) -> str:
    """A name from a stranger: what has no shape of its own is spelt out, and no length breaks the page."""
    found = plain(text)
    return found if len(found) <= 300 else f"{found[:297]}..."


def brief(text: object, most: int) -> str:
    """A name of at most `most` characters: the middle of a longer one is left out."""
    found = name(text)
    half = (most - 1) // 2
    return found if len(found) <= most else f"{found[: most - 1 - half]}\N{HORIZONTAL ELLIPSIS}{found[-half:]}"


def eps_text(eps: float | None) -> str:
    """`8/255`, `0.15`, or `no limit`."""
    return "no limit" if eps is None else format_fraction(eps)


def allowance(norm: str, eps: float) -> str:
    """What an attacker may change, as a clause: `every value may move by at most 8/255 of its range`."""
    radius = format_fraction(eps)
    return {
        "linf": f"every pixel value may move by at most {radius} of its range",
        "l2": f"the change may be at most {radius} long (L2, the root of the sum of squares)",
        "l1": f"the changes of all pixel values may add up to at most {radius} (L1)",
    }.get(norm, f"the change may be at most {radius} in {norm}")


def listed(items: Sequence[str], most: int = 0) -> str:
    """`a`, `a and b`, `a, b and c`; of more than `most`, `a, b and 5 more`."""
    items = list(items)
    if most and len(items) > most:
        items = [*items[:most], f"{len(items) - most} more"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
