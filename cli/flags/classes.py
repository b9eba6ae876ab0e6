"""The flag --classes: names of classes in the order of a model's outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgad_tk.common import UserError
from dgad_tk.strangers.names import same_names, shown

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import Predictor
    from dgad_tk.data import Dataset

ClassNames = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="NAMES|FILE",
        help="Classes in the order of the model's outputs: a,b,c or a file, a name a line. [sorted as text]",
    ),
]


def put_in_order(images: "Dataset", text: str | None) -> "Dataset":
    """The images with their classes as --classes says; as they are without it.

    Raises:
        UserError: it is no list of names, or lacks one of their classes.
    """
    from dgad_tk.data.labels.class_lists import choose, read_classes
    from dgad_tk.data.labels.order import in_order

    return images if text is None else in_order(images, choose(read_classes(text), images.classes))


def names_of(text: str | None) -> list[str]:
    """What --classes says by itself, where there are no images to say which of several names a class goes by.

    Raises:
        UserError: it is no list of names.
    """
    from dgad_tk.data.labels.class_lists import read_classes
    from dgad_tk.data.labels.order import places_of

    return [] if text is None else list(places_of(read_classes(text)[0]))


def check_names(path: Path, predictor: "Predictor", names: list[str], text: str | None) -> None:
    """See that --classes, where it is given, has a name for each output, and those of a record.

    Args:
        names: what it says.

    Raises:
        UserError: it has more or fewer names, or others.
    """
    if text is None:
        return
    if predictor.artifact is not None and not same_names(predictor.artifact.classes, names):
        raise UserError(
            f"'{path}' knows the classes {few(predictor.artifact.classes)}, --classes says {few(names)}",
            hint="leave out --classes: the file's own record says them",
        )
    if len(names) != predictor.classes:
        raise UserError(
            f"--classes gives {len(names):,} names, '{path}' has {predictor.classes:,} outputs",
            hint="a name for each output in their order; those without images, such as background, too",
        )


def few(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(map(shown, names[:4])) + (f", … ({len(names)})" if len(names) > 4 else "")
