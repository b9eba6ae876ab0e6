"""Flags of how a step is made: the parts of a batch, the optimizer, BatchNorm, augmentation."""

from typing import Annotated

import typer

from cli.flags.values import whole

Accumulate = Annotated[
    int | None,
    whole("--accumulate", "Parts that a batch goes through the networks in, for less memory; the same loss. [1]"),
]
FreezeBn = Annotated[
    bool,
    typer.Option("--freeze-bn", help="BatchNorm keeps and uses its running statistics; for a student with --init."),
]
Optimizer = Annotated[
    str | None, typer.Option(help="sgd or adamw; adamw's learning rate is 1e-3 unless --set lr says another. [sgd]")
]
DecayWeightsOnly = Annotated[bool, typer.Option("--decay-weights-only", help="No weight decay on norms and biases.")]
Augment = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        help="What happens to training images, in this order: crop, flip, random-resized-crop, colour-jitter, each "
        "perhaps with its amount, as random-resized-crop:0.3; or none. See `dgad list augments`. [the dataset's]",
    ),
]
