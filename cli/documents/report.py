"""`dgad report --json`: what was written. The content of an evaluation is in `dgad/results/1`."""

from typing import Literal

from pydantic import Field

from cli.documents.base import Count, Part


class Reported(Part):
    """A file that `dgad report` wrote; a list of them for several training runs."""

    schema_: Literal["dgad/report/1"]
    """Name and version of this document."""
    file: str = Field(min_length=1)
    """Where it lies."""
    format: str
    """Row of the table of forms: `html`, `md`, `sarif` and so on."""
    size_bytes: Count
    """Its size."""
