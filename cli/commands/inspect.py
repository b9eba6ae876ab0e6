"""`dgad inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.flags.models import named_images
from cli.flags.preprocessing import interface_of
from cli.flags.values import TRUST, whole


def inspect(
    file: Annotated[Path, typer.Argument(help="A model file.")],
    dataset: Annotated[str | None, typer.Option(help="Its images, for a file that leaves their shape open.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the images. [as in training]")] = None,
    image_size: Annotated[int | None, whole("--image-size", "Resize an image folder to this. [as in training]")] = None,
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc. [told from its shape]")] = None,
    logits_output: Annotated[str | None, typer.Option(help="Name of the output. [told from its outputs]")] = None,
    trust: TRUST = False,
) -> None:
    """Print what a model file is, takes and answers, and what it says about itself, as JSON."""
    interface = interface_of(None, None, None, layout, logits_output)

    from exporters.formats import load

    images = named_images(file, dataset, data_dir, image_size)
    predictor = load(file, images.shape if images else None, interface, trust=trust)
    print(
        json.dumps(
            {
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
