"""The record of `dgad compare`, schema `dgad/compare/1`: two or more results on the same images.

It needs no torch, as `evaluators/results.py` does not.
"""

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from evaluators.results import Interval, Item, Verdict

SCHEMA: Final = "dgad/compare/1"


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        alias_generator=lambda name: name.rstrip("_"),  # `schema` and `class` are no names for a field
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


class Images(_Part):
    """The images that all results saw. Every figure is of these, or of those of them that a row looked at."""

    name: str
    """Of the dataset."""
    split: str
    """Of the dataset."""
    n: int
    """How many."""


class Compared(_Part):
    """One of the results."""

    number: int
    """From 1. The first is the reference."""
    name: str
    """The model's file, with as much of its path as tells it from the others."""
    file: str
    """Where the results were read."""
    path: str
    """The model that was attacked."""
    sha256: str
    """Of the model's file."""
    format: str
    """Of the model's file."""
    n: int
    """Images that this result saw."""
    created: str
    """ISO 8601."""
    seed: int
    """Of the attacks' draws."""
    verdict: Verdict
    """Whether the evaluation is believable."""
    doubts: list[Item]
    """What its checks found."""


class ClassDifference(_Part):
    """One class in a test. Classes without images are left out."""

    class_: str
    """Its name."""
    n: int
    """Images of this class."""
    reference_right: int
    """Those that the reference got right."""
    right: int
    """Those that this result got right."""
    difference: float
    """Share that is right, less that of the reference; a fraction of the `n` images of this class."""
    ci95: Interval
    """Its 95 % interval, not adjusted for the number of classes."""


class Change(_Part):
    """An image that only one of the two got right."""

    index: int
    """Its place in the dataset."""
    change: Literal["lost", "won"]
    """`lost`: right in the reference, wrong here. `won`: the other way round."""
    label: str
    """The true class."""
    reference_answer: str
    """The class that the reference's model answered."""
    answer: str
    """The class that this result's model answered."""
    row: str
    """Whose answers these are: `clean`, or the first row that broke one of the two."""


class PairedTest(_Part):
    """One question, compared with the reference image by image."""

    name: str
    """`clean`, the id of a row in the reference, or `worst-case`, with `@EPS` where there are several radii."""
    kind: Literal["clean", "row", "worst-case"]
    """Of the question: clean images, one row, or the worst of several."""
    norm: str | None
    """Of the ball; null for `clean`."""
    eps: float | None
    """A fraction of 1; null for `clean`."""
    rows: list[str]
    """Ids, in the reference, of the rows that it is about: all that every result has, for the worst case."""
    n: int
    """Images that both looked at."""
    reference_right: int
    """Images that the reference got right: clean, or still under attack."""
    right: int
    """Images that this result got right."""
    difference: float
    """Share that is right, less that of the reference; a fraction of `n`. Below 0: worse than the reference."""
    ci95: Interval
    """Its 95 % interval for paired shares (Agresti & Min, 2005), not adjusted for the number of tests."""
    lost: int
    """Images that only the reference got right."""
    won: int
    """Images that only this one got right."""
    p: float
    """Exact McNemar test, two-sided: how likely a split of lost and won at least so uneven is if neither is better."""
    p_adjusted: float
    """The same, adjusted for all tests of this document as `adjustment` says."""
    more_than_chance: bool
    """`p_adjusted` is below the level of `adjustment`."""
    finding: str
    """What is found, as a clause: who is how much more or less accurate or robust, or that no difference is shown."""
    evidence: str
    """How sure that is, as a clause that follows a colon: what was lost and won, or what differs, and p."""
    classes: list[ClassDifference]
    """Each class that has images, in the order of the labels."""
    changes: list[Change]
    """Every image that was lost or won, by its place in the dataset."""


class Uncompared(_Part):
    """A row that is not compared."""

    row: str
    """Its id."""
    reason: str
    """Why it is not."""


class Pair(_Part):
    """One result beside the reference."""

    reference: int = 1
    """Number of the result that it is compared with."""
    other: int
    """Number of the result."""
    headlines: list[str]
    """Names of the tests that say most: the worst case at each radius, the largest first, and `clean`."""
    tests: list[PairedTest]
    """Clean images, each row that both have, the worst cases."""
    uncompared: list[Uncompared]
    """What only one of the two can answer, or what no radius bounds."""


class Kept(_Part):
    """Of the images that are right in the reference, those that are right in a result too."""

    result: int
    """Its number."""
    right: int
    """Images that are right in this result."""
    kept: int
    """Images that are right in this result and in the reference."""
    share: float | None
    """`kept` as a fraction of the reference's; null where that has none."""
    ci95: Interval
    """95 % Wilson interval of `share`."""


class Survival(_Part):
    """How much of one result's robustness the others have on the same images, as formats of one student do."""

    name: str
    """Of the test: `clean`, a row or `worst-case`."""
    eps: float | None
    """A fraction of 1; null for `clean`."""
    n: int
    """Images that were looked at."""
    reference_right: int
    """Those that are right in the reference."""
    results: list[Kept]
    """One per result but the reference."""
    in_all: Kept
    """Images that are right in every result. `result` is 0."""


class Adjustment(_Part):
    """How many tests there are, and what was done about it."""

    method: Literal["holm"] = "holm"
    """Holm's step-down method, which holds however the tests depend on each other."""
    tests: int
    """Size of the family: every test of every pair."""
    level: float
    """An adjusted p below this is called more than chance."""


class Comparison(_Part):
    """Two or more results on the same images, each compared with the first."""

    schema_: Literal["dgad/compare/1"] = SCHEMA
    """Name and version of this format."""
    created: str
    """When it was compared, ISO 8601."""
    command: str
    """What was typed."""
    images: Images
    """What all figures are of."""
    results: list[Compared]
    """What was compared, the reference first."""
    adjustment: Adjustment
    """What is done about the number of tests."""
    pairs: list[Pair]
    """Each result but the first, beside the first."""
    survival: list[Survival]
    """One per question that every result answers for all images."""
    notes: list[str]
    """What to know before the figures are read."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return self.model_dump(mode="json", by_alias=True)
