"""`--norm` and `--eps`."""

import math

from dgad_tk.common import UserError, parse_fraction

NORMS = {"linf": "linf", "l2": "l2", "l1": "l1"}


def radii_of(eps: str | None, norm: str) -> list[float] | None:
    """`8/255` or several radii separated by commas; None for the default.

    Raises:
        UserError: one of them is no radius of `norm`.
    """
    if eps is None:
        return None
    radii = [parse_fraction(part, upper=1.0 if norm == "linf" else math.inf) for part in eps.split(",")]
    if min(radii) == 0:
        raise UserError("--eps must be above 0", hint="for example --eps 8/255")
    return radii
