"""`dgad attack --dry-run --json`: one document, or a list of one per model."""

from typing import Literal

from cli.documents.base import Count, Part


class RowForecast(Part):
    """What one attack would cost."""

    id: str
    """The row's id in `results.json`."""
    images: Count
    """Images that it would look at."""
    seconds: float
    """What that would take on all processes together."""
    note: str
    """Why there is no forecast; empty where there is one."""


class Forecast(Part):
    """What an evaluation would cost, extrapolated from a few images."""

    schema_: Literal["dgad/forecast/1"]
    """Name and version of this document."""
    model: str
    """The file that would be attacked."""
    n: Count
    """Images that it would be attacked with."""
    pilot_images: Count
    """Images that the times were measured on."""
    batch_size: Count
    """Images at a time."""
    processes: Count
    """Processes that would share the work."""
    half_width: float
    """Half of the 95 % Wilson interval that a share of `n` images would have, at most."""
    seconds: float
    """All attacks and the clean pass together."""
    rows: list[RowForecast]
    """Attack by attack."""
