"""`dgad export --json`: one document per file, each on a line of its own."""

from typing import Any, Literal

from cli.documents.base import Count, Part, Share


class Comparison(Part):
    """The comparison of the file with its source on one set of images."""

    max_abs_diff: float
    """Largest difference of any logit."""
    mean_abs_diff: float
    """Mean difference over all logits."""
    relative: float
    """Largest difference of any image over the spread of that image's logits."""
    agreement: Share
    """Share of equal predictions."""
    compared: Count
    """Number of images."""
    told_apart: bool
    """Whether float32 has enough steps between the logits of an image to compare predictions."""


class Allowed(Part):
    """How far the file may be from its source."""

    relative: float | None
    """Largest relative difference of logits; null where only predictions are judged."""
    agreement: Share
    """Least share of equal predictions, on images and on PGD images each."""
    survival: Share
    """Least share of the adversarial images that stay adversarial."""


class Export(Part):
    """A written file, and whether it answers as its source does."""

    schema_: Literal["dgad/export/1"]
    """Name and version of this document."""
    file: str
    """The file that was written."""
    format: str
    """Row of `dgad list formats`."""
    source: str
    """The weights that it was made from."""
    size_bytes: Count
    """Size of the file."""
    seconds: float
    """What writing and comparing took."""
    sets: dict[str, Comparison]
    """By set of images: `clean` where there are images, `pgd` made from them, `noise`, `black` and `white`."""
    judged: list[str]
    """Sets whose predictions count."""
    adversarial: Count
    """Number of PGD images that fool the source."""
    survival: Share
    """Share of those that fool the file too; 1 if there are none."""
    tolerance: Allowed
    """What the file was held to."""
    not_judged: str
    """What the comparison does not show on this machine; empty for nothing."""
    passed: bool
    """Whether everything is within the tolerance. A file that is not has no document."""
    findings: dict[str, Any]
    """What the format has to report, such as how it was calibrated."""
    warnings: list[str]
    """What to know before the file is used."""
