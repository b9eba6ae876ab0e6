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
    rough: bool
    """Priced by the passes that it takes, since running it on a few images would have been dear."""


class ChoiceForecast(Part):
    """What else could be asked, and what it would cost."""

    name: str
    """`quick`, `standard` or `max`."""
    ask: str
    """The flags that ask it."""
    passes: Count
    """Passes through the network of an image that nothing breaks; a gradient is two."""
    images: Count
    """As many as fit into `--budget`, `n` without one; 0 where none fits."""
    half_width: float | None
    """Half of the 95 % Wilson interval of a share of `images`; null where none fits."""
    seconds: float | None
    """What it would take for `images`; null where none fits."""
    rough: bool
    """`seconds` is that of its passes, in part at least: not all of it was run on a few images."""
    says: str
    """What its answer supports."""
    blind: str
    """What it does not see."""


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
    choices: list[ChoiceForecast]
    """From the cheapest to the strongest; empty for a file without gradients."""
    recommended: str | None
    """The choice to take within `--budget`; null without one, or where none fits."""
