"""`dgad inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer


def inspect(file: Annotated[Path, typer.Argument(help="A model file.")]) -> None:
    """Print what a model file says about itself, and what it is, as JSON."""
    from exporters import load

    predictor = load(file)
    print(
        json.dumps(
            {
                "file": str(file),
                "sha256": predictor.sha256,
                "format": predictor.format,
                "runtime": predictor.runtime,
                "input_shape": predictor.input_shape,
                "metadata": predictor.artifact.to_dict() if predictor.artifact else None,
            },
            indent=2,
            ensure_ascii=False,
        )
    )
