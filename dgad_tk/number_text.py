"""Numbers as people write them: one grammar for flags, settings, variables and what a config file has in quotes."""

import re
from fractions import Fraction

LONGEST = 100
"""Characters. An exponent has three digits at most, so that no text makes a number that fills the memory."""

_DIGITS = r"\d+(?:_\d+)*"
_NUMBER = re.compile(rf"[+-]?(?P<whole>{_DIGITS})?(?:\.(?P<part>{_DIGITS})?)?(?:[eE][+-]?\d{{1,3}})?", re.ASCII)
_OTHER_BASE = re.compile(
    r"[+-]?0(?:[xX][0-9a-fA-F_]+|[oO][0-7_]+|[bB][01_]+)|[+-]?\d+(?::[0-5]?\d)+(?:\.\d*)?", re.ASCII
)


class NotANumberError(ValueError):
    """A text is no number, or may be several.

    Args:
        hint: what to write instead; empty where nothing follows from the text.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def exact(text: str) -> Fraction:
    """`10`, `0.45`, `.5`, `1e-1`, `1_000`, `8/255` or `4.5/255` as the very number that stands there.

    Raises:
        NotANumberError: anything else, infinite, not a number, a division by zero; or a whole number that begins with
            a zero, which is octal to some readers and decimal to others.
    """
    above, slash, below = text.partition("/")
    if not slash:
        return _decimal(text)
    numerator, denominator = _decimal(above), _decimal(below)
    if denominator == 0:
        raise NotANumberError(f"'{text}' divides by zero")
    return numerator / denominator


def whole(text: str) -> int:
    """`10`, `1_000`, `1e3` or `10.0` as a whole number.

    Raises:
        NotANumberError: as `exact`, or with a fraction behind it, or written as one.
    """
    if "/" in text:
        raise NotANumberError(f"'{text}' is a fraction")
    number = _decimal(text)
    if number.denominator != 1:
        raise NotANumberError(f"'{text}' is no whole number")
    return int(number)


def real(text: str) -> float:
    """What `exact` reads, rounded once.

    Raises:
        NotANumberError: as `exact`, or too large for a float.
    """
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
