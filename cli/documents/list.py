"""`dgad list WHAT --json`."""

from typing import Any, Literal

from cli.documents.base import Part


class Row(Part):
    """A row of the table."""

    name: str
    """What the flags take."""
    summary: str
    """What it is, in a line."""
    options: dict[str, Any]
    """What can be set, with its defaults; empty where nothing can."""


class Listed(Part):
    """A table of what there is to choose from."""

    schema_: Literal["dgad/list/1"]
    """Name and version of this document."""
    table: str
    """Which table."""
    rows: list[Row]
    """In the order of the table."""
