"""`dgad inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.flags.classes import ClassNames, check_names, names_of
from cli.flags.fitting import images_for, open_file
from cli.flags.images import DataDir, DatasetName, ImageFlags, ImageSize, Resize
from cli.flags.preprocessing import Layout, LogitsOutput, interface_of
from cli.flags.values import AsJson, Trust


def inspect(
    file: Annotated[Path, typer.Argument(help="A model file.")],
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    resize: Resize = None,
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

    flags = ImageFlags(dataset, data_dir, image_size, resize, classes)
    found = open_file(file, flags, interface, trust=trust, only="test")
    if found.obstacle is not None:
        raise found.obstacle
    predictor = found.predictor
    named = images_for(found, flags, "test").classes if dataset is not None else names_of(classes)
    check_names(file, predictor, named, classes)
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
                "notes": (*predictor.notes, *found.notes),
                "metadata": predictor.artifact.to_dict() if predictor.artifact else None,
            },
            indent=2,
            ensure_ascii=False,
        )
    )
