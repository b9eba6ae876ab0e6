"""What all documents have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """A document or a part of one. The sentence under each field becomes its description in the schema.

    Keys that are not described are refused, so that a test notices what is printed and not described.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=lambda name: name.rstrip("_"),  # `schema` is no name for a field
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction of 1."""
Count = Annotated[int, Field(ge=0)]
