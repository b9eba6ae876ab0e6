"""Flags of what a student starts from, and of how a step is made."""

from pathlib import Path
from typing import Annotated

import typer

from cli.flags.values import whole

Init = Annotated[
    Path | None,
    typer.Option(
        help="What the student starts from: a run folder, weights (.safetensors or a PyTorch checkpoint), or an .onnx "
        "file, which is the student itself. [weights drawn by --seed]"
    ),
]
InitMean = Annotated[
    str | None, typer.Option(help="Mean per channel that these weights want subtracted: 0.49,0.48,0.45. [nothing]")
]
InitStd = Annotated[str | None, typer.Option(help="Standard deviation per channel that they want the rest divided by.")]
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
