"""`dgad train --json`."""

from typing import Any, Literal

from pydantic import Field

from cli.documents.base import Count, Part, Share


class Trained(Part):
    """A finished training run, as its record says it."""

    schema_: Literal["dgad/train/1"]
    """Name and version of this document."""
    run: str
    """Folder of the run."""
    report: str | None
    """Its page; null where the disk had no room for it."""
    epochs: Count
    """Epochs that were trained."""
    best_epoch: Count
    """The epoch whose weights were kept, from 1."""
    seed: Count
    """Seed of every random draw."""
    limit_train: Count | None
    """Number of training images where it was limited; null for all of them."""
    method_options: dict[str, Any]
    """Options of the method that are not its defaults."""
    averaging: Literal["none", "ema", "swa"]
    """Which average of the weights was kept: exponential over the steps, the mean of the late epochs, or none."""
    optimizer: str = "sgd"
    """What moved the weights, where it was not sgd."""
    accumulate: Count = 1
    """Number of parts that a batch went through the networks in."""
    freeze_bn: bool = False
    """Whether BatchNorm kept and used the statistics that it began with."""
    bn_momentum: float | None = None
    """Share of a batch in BatchNorm's running statistics; null for the network's own."""
    decay_weights_only: bool = False
    """Whether norms and biases had no weight decay."""
    augment: list[str] = Field(default=[])
    """What happened to training images, in order; empty for the dataset's own crop and flip."""
    processes: Count
    """Processes that trained together."""
    selected_on: str
    """Split on which the best epoch was chosen: `val`, or `test` as the paper did."""
    selected_by: str
    """`robust` or `clean`: the accuracy by which it was chosen."""
    selection_images: Count
    """Number of images on which it was chosen."""
    selection_threat: dict[str, Any]
    """Norm, eps, step size and steps of the attack by which it was chosen."""
    clean_accuracy: Share
    """Accuracy of the kept weights on those images."""
    robust_accuracy: Share
    """Accuracy of the kept weights on those images under that attack."""
    dataset_sha256: str
    """Of all images and labels of the dataset."""
    paper: dict[str, Any] = Field(default={})
    """What the paper prints for this run, with its source, where the config has it."""
