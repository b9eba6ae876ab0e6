"""results.json, schema `dgad/results/1`: what one evaluation of one model found.

Everything that shows or judges results reads this model. It needs no torch, so that `dgad gate` starts at once.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from dgad_tk.common import UserError
from evaluators.curves import Curve
from evaluators.fields import CONFIG, Count, Distance, Eps, Seconds, Share, Shares, Side, at_most

SCHEMA: Final = "dgad/results/1"
FILE = "results.json"
HINT = "name the results.json of a `dgad attack`, or its folder"
AGAIN = "run that evaluation again: the same command goes on from what is stored"

Interval = tuple[float, float]
Verdict = Literal["high", "warn", "unreliable"]
Standing = Literal["no", "near", "whole"]
"""Whether an attack stands for AutoAttack, by which papers compare. `whole`: it has all stages of a published version.
`near`: it is made to find as much in less time."""


class _Part(BaseModel):
    model_config = CONFIG


class Model(_Part):
    """The file that was attacked."""

    path: str
    sha256: str
    format: str
    size: Count | None = None
    """Bytes."""
    precision: str = ""
    """`fp32`, `fp16` or `int8`."""
    metadata: dict[str, Any] | None
    """The record that the file carries, where it carries one."""
    preprocessing: dict[str, Any] = {}
    """What is done to pixels in [0, 1] before the file takes them."""
    notes: list[str] = []

    @property
    def computes_in(self) -> str:
        """The precision, as the file's reader or its record has it; empty if not known."""
        return self.precision or str((self.metadata or {}).get("precision") or "")


class Dataset(_Part):
    """The images."""

    name: str
    split: str
    n: Count
    sha256: str
    """Of all images, labels and places in the dataset."""
    shape: tuple[Side, Side, Side] | None = None
    """(C, H, W)."""
    classes: list[str] = []
    """Names of all classes, in the order of the labels."""
    resize: str = ""
    """How pictures of a folder got this shape: `squeeze`, `crop` or `pad`; empty for images of one size."""


class Threat(_Part):
    """Norm and radii, in fractions of 1."""

    norm: str
    eps: list[Eps]


class ClassShare(_Part):
    """How many images of a class are right. Classes without images are left out."""

    class_: str
    n: Annotated[Count, Field(ge=1)]
    right: Count

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        return at_most(self, self.right, self.n)


class CleanClass(ClassShare):
    """Of the clean images."""

    right: Count = Field(alias="correct")


class AttackedClass(ClassShare):
    """Under the worst of all attacks at one radius."""

    right: Count = Field(alias="robust")


class Clean(_Part):
    """Answers to the clean images."""

    accuracy: Share
    correct: Count
    n: Count
    non_finite: Count = 0
    """Images with a logit that is NaN or infinite. They count as wrong."""
    classes: list[CleanClass] = []

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        return at_most(self, self.correct, self.n)


class Stage(_Part):
    """A stage of an ensemble of attacks."""

    name: str
    broken: Count
    seconds: Seconds


class Attack(_Part):
    """A row: one attack at one radius. Shares are fractions of all `n` images."""

    id: str
    """Unique: `pgd`, `pgd@4/255`, `transfer:resnet20:fgsm`."""
    name: str
    """Row of the ATTACKS table."""
    autoattack: Standing | None = None
    """Whether it stands for AutoAttack: `no`, `near` or `whole`; null in older files, which know no `near`."""
    description: str = ""
    """What the attack is, in a line."""
    kind: str
    """`budget`: looks inside a ball. `min-norm`: looks for the nearest adversarial image."""
    source: str
    """`white-box`, `black-box` or `transfer`."""
    surrogate: str | None
    norm: str
    eps: Eps | None
    params: dict[str, Any]
    robust_accuracy: Share | None = None
    """Share of images that are right when clean and withstand; null for `min-norm`."""
    robust: Count | None = None
    n: Count
    """Images that were looked at, from the first; a slow attack may see only some."""
    ci95: Shares | None = None
    """95 % Wilson interval of `robust_accuracy`."""
    success: Share | None = None
    """Share of the attacked images that broke."""
    failed: Share | None = None
    median_l2: Distance | None = None
    """Of the images that broke."""
    median_distance: Distance | None = None
    """The same in the row's own norm."""
    accuracy: Share | None = None
    """Of `min-norm`: share that is left right, which says as much about the search as about the model."""
    reused: Count = 0
    """Broken images that a smaller radius had broken already."""
    stages: list[Stage] = []
    seconds: Seconds = 0.0
    forward_passes: Count = 0
    """Images through a network."""
    backward_passes: Count = 0
    status: Literal["done", "skipped", "failed"]
    reason: str
    """Why there is no result."""
    flags: list[str] = []

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        return at_most(self, self.robust or 0, self.n)

    @property
    def standing(self) -> Standing:
        """`autoattack`, of older files by the name; `no` for what was found on another model."""
        if self.surrogate is not None:
            return "no"
        return self.autoattack or ("whole" if self.name.startswith("autoattack") else "no")

    @property
    def names(self) -> list[str]:
        """What the row is called besides its id, without eps; the exact name first."""
        if self.surrogate is None:
            return [self.name]
        return [f"{self.source}:{self.surrogate}:{self.name}", f"{self.source}:{self.name}"]


class WorstCase(_Part):
    """Images that withstand every budget attack at one radius."""

    norm: str
    eps: Eps
    robust_accuracy: Share
    robust: Count
    n: Count
    ci95: Shares
    classes: list[AttackedClass] = []

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        return at_most(self, self.robust, self.n)


@dataclass(config=CONFIG)
class Item:
    """One check of whether the evaluation is believable; `high` is nothing found."""

    name: str
    verdict: Verdict
    detail: str


class Checks(_Part):
    """All checks, and the worst verdict."""

    verdict: Verdict
    items: list[Item]


@dataclass(config=CONFIG)
class Gate:
    """One demand of `dgad gate`, and whether it was met."""

    name: str
    """What was looked at: a row, `clean` or `worst-case`; `baseline:` before it where two results were compared."""
    passed: bool
    required: str
    got: str
    detail: str = ""
    """How sure that is, or why there is nothing to compare."""


class Results(_Part):
    """The record of one evaluated model, in shares and counts; `samples.npz` beside it has every image's outcome."""

    schema_: Literal["dgad/results/1"] = SCHEMA
    created: str
    """ISO 8601."""
    command: str
    model: Model
    dataset: Dataset
    threat: Threat
    seed: int
    clean: Clean
    attacks: list[Attack]
    worst_case: list[WorstCase]
    curves: list[Curve] = []
    """Robust accuracy against eps, read off one search for the nearest adversarial images (`--curve`)."""
    twin: dict[str, float]
    """`max_abs_diff` and `argmax_agreement` of the module that gives gradients and the runtime; empty without one."""
    checks: Checks
    environment: dict[str, str | int]
    """Versions, runtime, batch size, hardware, and the SHA-256 of dgad-tk's own code."""
    gates: list[Gate] = []
    """Filled by `dgad gate --json`."""
    uncompared: list[str] = []
    """Ids of the rows that the baseline of `dgad gate` had no answer to."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return self.model_dump(mode="json", by_alias=True)


class _Named(BaseModel):
    schema_: str = Field(alias="schema", pattern="^dgad/results/")


def read_results(path: Path) -> Results:
    """Read `results.json`, or the one in a folder.

    What was added to the schema since the file was written takes its default. Keys that are not known here are those of
    a newer dgad, and are left out: what changes the meaning of a key changes the schema's number.

    Raises:
        UserError: there is none, it is not ours, it follows another version of the schema, or it is damaged.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"no such file: '{path}'", hint=HINT)
    text = path.read_bytes()
    try:
        schema = _Named.model_validate_json(text).schema_
    except ValidationError:
        raise UserError(f"'{path}' was not written by `dgad attack`", hint=HINT) from None
    if schema != SCHEMA:
        raise UserError(f"'{path}' follows the schema {schema}, expected {SCHEMA}", hint="attack the model again")
    try:
        return Results.model_validate_json(text, extra="ignore")
    except ValidationError as error:
        where, why = (error.errors()[0][key] for key in ("loc", "msg"))
        raise UserError(f"'{path}' is damaged: {'.'.join(map(str, where))}: {why}", hint=AGAIN) from None
