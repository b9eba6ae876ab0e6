"""`dgad inspect`."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.flags.classes import ClassNames, check_names, names_of
from cli.flags.fitting import open_file
from cli.flags.images import DataDir, DatasetName, ImageFlags, ImageSize, Resize
from cli.flags.models import open_model
from cli.flags.preprocessing import Layout, LogitsOutput, interface_of
from cli.flags.values import SPLITS, AsJson, Quiet, Trust, whole
from cli.printing.again import other_command
from cli.printing.preprocessings import flags_of, preprocessings_json, preprocessings_table
from cli.printing.progress import TrialProgress
from dgad_tk.common import UserError, lookup, written_aside

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import Predictor
    from dgad_tk.artifacts.preprocessing import Interface

IMAGES, OF_LARGE, LARGE = 500, 250, 128 * 128
"""Images that are tried at most; fewer where one has more pixels than LARGE. A ResNet-50 of 1,000 classes that nothing
fits took a minute and a half on one core."""
MOST_SPELT = 20
"""Classes up to which the command to copy names them; of more it names a file."""
CLASSES_FILE = "classes.txt"


def inspect(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A model file.")],
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    classes: ClassNames = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    limit: Annotated[
        int | None,
        whole("--limit", "Try preprocessings on the first N images. [500, or 250 above 128x128 pixels]", least=1),
    ] = None,
    layout: Layout = None,
    logits_output: LogitsOutput = None,
    write_classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the class names in the order of the file's outputs, for --classes."),
    ] = None,
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Print what a model file is and which images it wants.

    Without --dataset that is JSON: the format, what the file takes and answers, and the record of its training. With
    it, the preprocessings of the field are tried on labelled images: a table of how many are right, best first, and the
    flags to copy; with --json all of that is JSON. A file
    that leaves the shape of its images open needs --dataset or --image-size.
    """
    lookup(SPLITS, split, "split")
    interface = interface_of(layout=layout, logits_output=logits_output)
    flags = ImageFlags(dataset, data_dir, image_size, resize, classes)
    if dataset is None:
        if write_classes is not None:
            raise UserError("--write-classes needs images that show the order", hint="name them with --dataset")
        found = open_file(file, flags, interface, trust=trust)
        if found.obstacle is not None:
            raise found.obstacle
        check_names(file, found.predictor, names_of(classes), classes)
        print_facts(file, replace(found.predictor, notes=(*found.predictor.notes, *found.notes)), None)
        return

    if write_classes is not None and write_classes.is_dir():
        raise UserError(f"--write-classes: '{write_classes}' is a folder", hint="name a file")

    from evaluators.preprocessings.finding import find
    from evaluators.preprocessings.table import AS_THEY_ARE, candidates
    from evaluators.preprocessings.trial import takes_bytes, try_all
    from evaluators.preprocessings.words import sentences
    from exporters.formats import load

    predictor, images = open_model(file, flags, interface, gradients=False, twin=False, trust=trust, only=split)
    part = images.splits[split]
    most = limit or (OF_LARGE if math.prod(images.shape[1:]) > LARGE else IMAGES)
    part = part.subset(min(most, max(1, len(part))))
    channels, own = predictor.input_shape[0], predictor.artifact is not None
    if not (quiet or as_json):
        for note in predictor.notes:
            print(f"note: {file}: {note}", file=sys.stderr)

    def reopen(wanted: "Interface") -> "Predictor":
        wanted = replace(wanted, layout=interface.layout, logits_output=predictor.interface.logits_output)
        return load(file, images.shape, wanted, trust=trust, gradients=False)

    with TrialProgress(quiet=quiet) as progress:
        trials = try_all(
            predictor,
            AS_THEY_ARE if own else candidates(channels),
            part,
            images.classes,
            reopen=reopen,
            on_progress=progress,
        )
    finding = find(trials, part.labels, images.classes, predictor.classes)
    best = finding.rows[0]
    fits = finding.verdict != "none"
    said = sentences(finding, channels=channels, own=own, eight_bits=takes_bytes(predictor))
    names = list(best.order.classes) if fits and best.order is not None else []
    named = _as_flag(names, write_classes)
    if names and write_classes is None and CLASSES_FILE in named:
        said.append(f"--write-classes {CLASSES_FILE} writes the {len(names):,} names in the order of its outputs")
    more = [*flags_of(best.candidate.interface), *named]
    command = other_command(context, "attack", file, more) if fits else []
    if write_classes is not None and not fits:
        said.append(f"'{write_classes}' is not written: no order of classes is known")
    if as_json:
        tried = {"dataset": images.name, "split": split, "n": len(part)}
        print_facts(file, predictor, {**tried, **preprocessings_json(finding, said, command, names or None)})
    else:
        print(
            f"{file}: {predictor.format}, takes {channels} channels of {predictor.input_shape[1]} x "
            f"{predictor.input_shape[2]} pixels, tells {predictor.classes:,} classes apart; {len(part):,} {split} "
            f"images of {images.name}, {len(images.classes):,} classes"
        )
        preprocessings_table(finding, said, command)
    if write_classes is not None and fits:  # last: what is in its way costs nobody the table
        _write_classes(write_classes, names or images.classes)


def print_facts(file: Path, predictor: "Predictor", tried: dict[str, Any] | None) -> None:
    """Print what a file is and says about itself, and what was tried on it, as JSON."""
    document = {
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
        "names": predictor.names,
        "logits_output": predictor.interface.logits_output,
        "notes": predictor.notes,
        "metadata": predictor.artifact.to_dict() if predictor.artifact else None,
        "preprocessings": tried,
    }
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _as_flag(names: list[str], written: Path | None) -> list[str]:
    """`--classes` and the names, or the file that has them; nothing without names."""
    if not names:
        return []
    spelt = len(names) <= MOST_SPELT and not any("," in name or name != name.strip() for name in names)
    return ["--classes", str(written) if written is not None else ",".join(names) if spelt else CLASSES_FILE]


def _write_classes(path: Path, names: list[str]) -> None:
    """Write a name a line.

    Raises:
        UserError: something else is there.
    """
    text = "".join(f"{name}\n" for name in names)
    if path.exists() and path.read_bytes() != text.encode():
        raise UserError(f"--write-classes: '{path}' exists", hint="choose another --write-classes")
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
