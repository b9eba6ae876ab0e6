"""Flags of `dgad train` that say what a student starts from."""

from pathlib import Path
from typing import Annotated

import typer

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
