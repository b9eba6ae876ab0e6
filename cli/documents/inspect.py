"""`dgad inspect`."""

from typing import Any, Literal

from cli.documents.base import Count, Part, Share


class Preprocessing(Part):
    """One preprocessing, tried on images."""

    name: str
    """Row of `dgad list preprocessings`, and RGB or BGR where that is not its usual order."""
    flags: list[str]
    """What `dgad attack` takes for it; empty for images as they are."""
    n: Count
    """Images that it was tried on: fewer than of others if one of those was surely better by then."""
    correct: Count
    """How many of them are right, in the best order of classes."""
    accuracy: Share
    """`correct` of `n`."""
    ci95: tuple[Share, Share]
    """95 % Wilson interval of `accuracy`."""
    order: str
    """Why its classes are in another order than the images'; empty where they are not."""
    leads: bool
    """Whether it is the best, or cannot be told from the best."""


class Preprocessings(Part):
    """What the file wants, as labelled images tell."""

    dataset: str
    """Row of `dgad list datasets`."""
    split: str
    """train, val or test."""
    n: Count
    """Images that were there to be tried."""
    verdict: Literal["found", "tied", "none"]
    """One is surely the best; several cannot be told apart; none is surely better than guessing."""
    guessing: Share
    """What guessing gives: the share of the largest class, and at least one over the number of classes."""
    rows: list[Preprocessing]
    """Best first."""
    said: list[str]
    """What that means, sentence by sentence."""
    classes: list[str] | None
    """Names in the order of the file's outputs; null where that is the order of the images' classes."""
    command: list[str]
    """The `dgad attack` for the first row, word by word; empty where none fits."""


class Inspected(Part):
    """What a model file is and says about itself."""

    schema_: Literal["dgad/inspect/1"]
    """Name and version of this document."""
    file: str
    """The file."""
    sha256: str
    """Of its bytes."""
    format: str
    """onnx, torchscript, torch-export or safetensors."""
    runtime: str
    """What runs it here, and judges in `dgad attack`."""
    precision: str
    """What it computes in: fp32, fp16, int8 or the like."""
    input_shape: tuple[Count, Count, Count]
    """(C, H, W) of one image."""
    layout: Literal["nchw", "nhwc"]
    """Order of the axes of its input."""
    batch: Count | Literal["any"]
    """The only number of images that it takes at a time, or `any`."""
    classes: Count
    """Number of its logits."""
    names: list[str]
    """Of its classes, in the order of its logits, as the metadata of a file from elsewhere have them; else empty."""
    logits_output: str | None
    """Name of the output that holds them; null where the file has no names."""
    notes: list[str]
    """How the file was understood, where that was not plain."""
    metadata: dict[str, Any] | None
    """The record of its training, schema `dgad/artifact/1`; null for a file from elsewhere."""
    preprocessings: Preprocessings | None
    """What was tried on the images that --dataset names; null without it."""
