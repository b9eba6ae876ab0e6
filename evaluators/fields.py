"""Types of the fields of results.json, and what its parts have in common."""

from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field

from dgad_tk.config.threat import LARGEST_EPS

Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]
Shares = tuple[Share, Share]
Eps = Annotated[float, Field(gt=0, le=LARGEST_EPS)]
Distance = Annotated[float, Field(ge=0, le=LARGEST_EPS)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Side = Annotated[int, Field(ge=1, le=2**20)]
Counted = TypeVar("Counted")

CONFIG = ConfigDict(
    extra="forbid",  # what we write; `read_results` tells of keys that a newer version wrote
    frozen=True,
    allow_inf_nan=False,
    alias_generator=lambda name: name.rstrip("_"),  # `schema` and `class` are no names for a field
    populate_by_name=True,
    use_attribute_docstrings=True,
)


def at_most(part: Counted, right: int, n: int) -> Counted:
    """`part`, where no more than `n` of `n` images are right."""
    if right > n:
        raise ValueError(f"{right:,} of {n:,} images are right")
    return part
