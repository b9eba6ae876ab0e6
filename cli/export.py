"""`dgad export`."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgad_tk.common import UserError

if TYPE_CHECKING:
    from dgad_tk.artifact import Artifact
    from dgad_tk.predictor import Images


def export(
    source: Annotated[
        Path | None, typer.Argument(help="Run folder or .safetensors file. [the newest finished run]")
    ] = None,
    format: Annotated[str, typer.Option(help="See `dgad list formats`, or all.")] = "onnx",
    output: Annotated[Path | None, typer.Option(help="[student.SUFFIX in the current folder]")] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset, 18 to 23. [20]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that dgad did not write.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a trained student in a deployable format, verified against its source."""
    from dgad_tk.checkpoint import read_weights
    from dgad_tk.runs import newest_run, weights_of

    weights = weights_of(source) if source else newest_run(finished=True).best
    _, artifact = read_weights(weights)

    from exporters import EXPORTERS
    from exporters import export as run_export

    formats = list(EXPORTERS) if format == "all" else [format]
    if output is not None and len(formats) > 1:
        raise UserError("--output names one file, --format all writes several", hint="leave --output out")
    images = _images(artifact)
    for name in formats:
        suffix = EXPORTERS[name].suffix if name in EXPORTERS else ""
        target = output or Path(f"student{suffix}")
        options: dict[str, Any] = {"opset": opset} if opset is not None else {}
        begun = time.perf_counter()
        parity = run_export(weights, name, target, images=images, overwrite=overwrite, **options)
        seconds = time.perf_counter() - begun
        if as_json:
            print(json.dumps({"file": str(target), "format": name, "source": str(weights), **vars(parity)}))
            continue
        size = target.stat().st_size / 1024
        print(f"{target}: {name} of {weights}, {size:,.0f} KiB, in {seconds:.1f} s")
        print(f"verified against its source: {parity}")
        if EXPORTERS[name].note:
            print(f"note: {EXPORTERS[name].note}", file=sys.stderr)
    if not as_json:
        print(f"next: dgad attack --model {target} --suite full", file=sys.stderr)


def _images(artifact: "Artifact") -> "Images | None":
    """A few held-out images of the dataset the model was trained on; None, said aloud, where it is not at hand."""
    import numpy as np

    from cli.images import dataset_of

    try:
        dataset = dataset_of(artifact)
    except UserError as error:
        print(f"note: verifying on noise, since the dataset cannot be opened: {error}", file=sys.stderr)
        return None
    split = dataset.val
    if len(split) < 16 or dataset.shape != artifact.input_shape:
        print(f"note: verifying on noise, since {dataset.name} has no 16 fitting images held out", file=sys.stderr)
        return None
    return np.divide(split.take(slice(0, 16)), np.float32(255), dtype=np.float32)
