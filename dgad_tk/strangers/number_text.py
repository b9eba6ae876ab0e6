"""Numbers and fractions written by people: one grammar for flags, settings, variables and config files."""

import math
import re
from fractions import Fraction

from dgad_tk.common import UserError

LONGEST = 100
"""Characters of a number. With at most three digits of exponent, no text makes a number that fills the memory."""

_DIGITS = r"\d+(?:_\d+)*"
_NUMBER = re.compile(rf"[+-]?(?P<whole>{_DIGITS})?(?:\.(?P<part>{_DIGITS})?)?(?:[eE][+-]?\d{{1,3}})?", re.ASCII)
_OTHER_BASE = re.compile(
    r"[+-]?0(?:[xX][0-9a-fA-F_]+|[oO][0-7_]+|[bB][01_]+)|[+-]?\d+(?::[0-5]?\d)+(?:\.\d*)?", re.ASCII
)


class NotANumberError(ValueError):
    """A text is not a number, or may mean several numbers; `hint` says what to write instead, where that is known."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def exact(text: str) -> Fraction:
    """`10`, `0.45`, `.5`, `1e-1`, `1_000`, `8/255` or `4.5/255`, without rounding.

    Raises:
        NotANumberError: any other text, a division by zero, or a whole number that begins with a zero: some readers
            take it as octal, others as decimal.
    """
    above, slash, below = text.partition("/")
    if not slash:
        return _decimal(text)
    numerator, denominator = _decimal(above), _decimal(below)
    if denominator == 0:
        raise NotANumberError(f"'{text}' divides by zero")
    return numerator / denominator


def whole(text: str) -> int:
    """`10`, `1_000`, `1e3` or `10.0` as a whole number; NotANumberError for a fraction, and as `exact`."""
    if "/" in text:
        raise NotANumberError(f"'{text}' is a fraction")
    number = _decimal(text)
    if number.denominator != 1:
        raise NotANumberError(f"'{text}' is no whole number")
    return int(number)


def real(text: str) -> float:
    """The number of `exact` rounded to a float; NotANumberError where it is too large, and as `exact`."""
    try:
        return float(exact(text))
    except OverflowError:
        raise NotANumberError(f"'{text}' is too large") from None


def _decimal(text: str) -> Fraction:
    text = text.strip()
    found = _NUMBER.fullmatch(text) if len(text) <= LONGEST else None
    if found is None or not (found["whole"] or found["part"]):
        other = len(text) <= LONGEST and _OTHER_BASE.fullmatch(text)
        raise NotANumberError(f"'{text[:LONGEST]}' is no decimal number", "write it to base 10" if other else "")
    if re.fullmatch(r"[+-]?0[\d_]+", text, re.ASCII):
        plain = text.replace("_", "").lstrip("+-0") or "0"
        raise NotANumberError(f"'{text}' is octal to some readers", f"leave out the zero in front: {plain}")
    return Fraction(text.replace("_", ""))


def parse_fraction(text: str | float, *, upper: float = 1.0) -> float:
    """`8/255`, `4.5/255`, `0.03` or a number as a float; UserError where it is not one in [0, upper]."""
    try:
        value = real(text) if isinstance(text, str) else float(text)
    except (TypeError, ValueError, OverflowError) as error:
        own = error.hint if isinstance(error, NotANumberError) else ""
        raise UserError(
            f"eps must be a fraction of 1 such as 8/255 or 0.03, got '{text}'",
            hint=own or "pixels run from 0 to 1 here, whatever the dataset's own range",
        ) from None
    if not 0 <= value <= upper:
        bounds = "not be negative" if upper == math.inf else f"be between 0 and {upper:g}"
        raise UserError(
            f"eps must {bounds}, got '{text}'",
            hint=f"write {text}/255 if you mean {text} of 255 grey levels" if 1 < value <= 255 else "for example 8/255",
        )
    return value


def format_fraction(value: float) -> str:
    """An eps as people write it: `8/255` for a multiple of 1/255, else `0.15`."""
    levels = value * 255
    if abs(levels - round(levels)) < 1e-6 and 0 < round(levels) < 255 and abs(value * 100 - round(value * 100)) > 1e-9:
        return f"{round(levels)}/255"
    return f"{value:.4g}"
