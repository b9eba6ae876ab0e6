"""`dgad inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dgad_tk.common import UserError


def inspect(file: Annotated[Path, typer.Argument(help="A model file.")]) -> None:
    """Print what a model file says about itself, and what it is, as JSON."""
    from exporters import load

    predictor = load(file)
    if predictor.artifact is None:
        raise UserError(f"'{file}' carries no dgad metadata record", hint="it was not written by `dgad`")
    print(
        json.dumps(
            {
                "file": str(file),
                "sha256": predictor.sha256,
                "format": predictor.format,
                "runtime": predictor.runtime,
                **predictor.artifact.model_dump(),
            },
            indent=2,
            ensure_ascii=False,
        )
    )
