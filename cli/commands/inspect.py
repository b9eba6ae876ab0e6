"""`dgad inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.flags.classes import ClassNames, check_names, names_of
from cli.flags.models import DataDir, DatasetName, ImageFlags, ImageSize
from cli.flags.preprocessing import Layout, LogitsOutput, interface_of
from cli.flags.values import AsJson, Trust


def inspect(
    file: Annotated[Path, typer.Argument(help="A model file.")],
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    classes: ClassNames = None,
    layout: Layout = None,
    logits_output: LogitsOutput = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Print what a model file is and says about itself, as JSON, with --json or without.

    That is its format, what it takes and answers, and the record of its training. A file that leaves the shape of its
    images open needs --dataset.
    """
    interface = interface_of(layout=layout, logits_output=logits_output)

    from exporters.formats import load

    images = ImageFlags(dataset, data_dir, image_size, classes).named(file)
    predictor = load(file, images.shape if images else None, interface, trust=trust)
    check_names(file, predictor, images.classes if images else names_of(classes), classes)
    print(
        json.dumps(
            {
                "schema": "dgad/inspect/1",
                "file": str(file),
                "sha256": predictor.sha256,
                "format": predictor.format,
                "runtime": predictor.runtime,
                "precision": predictor.precision,
                "input_shape": predictor.input_shape,
                "layout": predictor.interface.layout or "nchw",
                "batch": predictor.batch or "any",
                "classes": predictor.classes,
                "logits_output": predictor.interface.logits_output,
                "notes": predictor.notes,
                "metadata": predictor.artifact.to_dict() if predictor.artifact else None,
            },
            indent=2,
            ensure_ascii=False,
        )
    )
