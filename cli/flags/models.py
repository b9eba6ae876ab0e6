"""The model files that a command works on, and the images and the threat that belong to them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.flags.classes import check_names, few
from cli.flags.fitting import images_for, open_file
from cli.flags.images import ImageFlags
from cli.printing.terminal import aside
from dgad_tk.common import UserError
from dgad_tk.strangers.names import same_names

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import Predictor
    from dgad_tk.artifacts.preprocessing import Interface
    from dgad_tk.artifacts.record import Artifact
    from dgad_tk.data import Dataset


def check_files(paths: Sequence[Path]) -> None:
    """See that all files are there, before anything heavy is imported.

    Raises:
        UserError: one is not.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"no such file: '{path}'", hint="`dgad export` writes student.onnx into the current folder")


@aside
def open_model(
    path: Path,
    flags: ImageFlags,
    interface: "Interface | None" = None,
    *,
    gradients: bool = True,
    twin: bool = True,
    trust: bool = False,
    only: str | None = None,
) -> "tuple[Predictor, Dataset]":
    """A model and its images. Either may have to say what shape the other has.

    The notes on the images join those on the model: both are for whoever reads the results.

    Args:
        gradients: whether gradients are needed. Without them, an ONNX file may have operators that its twin lacks.
        twin: False for who only asks for answers, so that no twin is made.
        trust: open a file that is a program (.pt, .pt2).
        only: the one split of an image folder that has to be there; None if there is to be training.

    Raises:
        UserError: one of them cannot be opened, or their classes differ.
    """
    import numpy as np

    from dgad_tk.data.splits import stretched

    found = open_file(path, flags, interface, trust=trust, only=only, twin=twin)
    if found.obstacle is not None and gradients:
        hint = f"`dgad attack --suite blackbox` needs no gradients; {found.obstacle.hint}"
        raise UserError(found.obstacle.message, hint=hint)
    predictor, images = found.predictor, images_for(found, flags, only)
    check_names(path, predictor, images.classes, flags.classes)
    check_classes(path, predictor, images)
    if predictor.one_number and len(images.classes) > 2:
        raise UserError(
            f"'{path}' gives one number per image, which tells two classes apart; {images.name} has "
            f"{len(images.classes)} classes",
            hint="give the images of the two classes that it was trained for",
        )
    notes = (*predictor.notes, *found.notes, *_notes_on_classes(predictor, images, flags.classes is not None))
    if only is not None and len(there := np.unique(images.splits[only].labels)) == 1:
        notes += (
            f"all images are of class '{images.classes[there[0]]}': they tell how often it is kept, and nothing of how "
            "well it is told from others",
        )
    if predictor.artifact is None and (said := stretched(images)):
        notes += (said,)
    return replace(predictor, notes=(*notes, *images.notes)), images


def _notes_on_classes(predictor: "Predictor", images: "Dataset", named: bool) -> Iterator[str]:
    """What to know about labels and outputs, a sentence each. `named`: --classes says which is which."""
    from dgad_tk.data.labels.order import as_flag, sorted_as_text

    if predictor.one_number:
        none, one = images.classes
        yield f"class 1 is '{one}', class 0 is '{none}'" + (
            "" if named else f"; if it is the other way: {as_flag([one, none])}"
        )
    if predictor.artifact is not None:
        return
    if named:
        yield f"the file's outputs are taken to be {few(images.classes)}, as --classes says"
    elif predictor.names and same_names(predictor.names, images.classes):
        yield f"the file's outputs are taken to be {few(images.classes)}, as its metadata say; --classes says otherwise"
    else:
        if predictor.names:
            yield f"its metadata call the file's outputs {few(predictor.names)}: names that the images' classes lack"
        if doubt := sorted_as_text(images.classes):
            yield doubt
    if predictor.classes != len(images.classes):
        yield (
            f"the file tells {predictor.classes} classes apart and {images.name} has {len(images.classes)}: "
            f"image labels are taken as numbers of logits, 0 for '{images.classes[0]}'; --classes names all outputs"
        )


def check_classes(path: Path, predictor: "Predictor", images: "Dataset") -> None:
    """See that the labels of the images mean what the model's logits mean, as far as its record says.

    Raises:
        UserError: their classes differ.
    """
    if predictor.artifact is not None and not same_names(predictor.artifact.classes, images.classes):
        raise UserError(
            f"'{path}' knows the classes {few(predictor.artifact.classes)}, {images.name} has {few(images.classes)}",
            hint="name the images it was trained for with --dataset and --data-dir",
        )


def default_eps(artifact: "Artifact | None", images: "Dataset", norm: str) -> float:
    """The radius that a model was trained for in `norm`, else the one that is usual for its images.

    Raises:
        UserError: none is usual.
    """
    if artifact and artifact.threat.get("norm") == norm:
        return float(artifact.threat["eps"])
    if norm not in images.spec.eps:
        raise UserError(f"no {norm} radius is usual for {images.name}", hint="give one with --eps")
    return images.spec.eps[norm]
