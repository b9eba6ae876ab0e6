"""The model files that a command works on, and the images and the threat that belong to them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.flags.classes import check_names, few, put_in_order
from cli.flags.values import whole
from dgad_tk.common import UserError
from dgad_tk.strangers.names import same_names

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import Predictor
    from dgad_tk.artifacts.preprocessing import Interface
    from dgad_tk.artifacts.record import Artifact
    from dgad_tk.data import Dataset

DatasetName = Annotated[
    str | None, typer.Option("--dataset", help="See `dgad list datasets`. [the one the model was trained on]")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder of the images. [as in training]")]
ImageSize = Annotated[int | None, whole("--image-size", "Resize an image folder to this. [as in training]")]


@dataclass(frozen=True)
class ImageFlags:
    """What --dataset, --data-dir, --image-size and --classes say; None for what is not given."""

    dataset: str | None = None
    data_dir: Path | None = None
    image_size: int | None = None
    classes: str | None = None

    def load(self, artifact: "Artifact | None") -> "Dataset":
        """The dataset that the flags name, its classes in the order of --classes. The record says what they leave open.

        Raises:
            UserError: neither names one, it cannot be loaded, or --classes does not fit it.
        """
        from dgad_tk.data import load_dataset

        name, data_dir, image_size = self.dataset, self.data_dir, self.image_size
        if artifact is not None and name in (None, artifact.dataset):
            options = artifact.dataset_options
            name = artifact.dataset
            data_dir = data_dir or (Path(options["data_dir"]) if "data_dir" in options else None)
            image_size = image_size or options.get("image_size")
        if name is None:
            raise UserError(
                "the model carries no dgad metadata record, so its images are unknown",
                hint="name them with --dataset",
            )
        return put_in_order(load_dataset(name, data_dir=data_dir, image_size=image_size), self.classes)

    def named(self, path: Path) -> "Dataset | None":
        """The dataset that the flags name; None if they name none. The record in `path` says what they leave open.

        Raises:
            UserError: the file cannot be read, or the images cannot be loaded.
        """
        from exporters.formats import read_record

        return self.load(read_record(path)) if self.dataset is not None else None


def check_files(paths: Sequence[Path]) -> None:
    """See that all files are there, before anything heavy is imported.

    Raises:
        UserError: one is not.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"no such file: '{path}'", hint="`dgad export` writes student.onnx into the current folder")


def open_model(
    path: Path,
    flags: ImageFlags,
    interface: "Interface | None" = None,
    *,
    gradients: bool = True,
    trust: bool = False,
) -> "tuple[Predictor, Dataset]":
    """A model and its images. Either may have to say what shape the other has.

    The notes on the images join those on the model: both are for whoever reads the results.

    Args:
        gradients: whether gradients are needed. Without them, an ONNX file may have operators that its twin lacks.
        trust: open a file that is a program (.pt, .pt2).

    Raises:
        UserError: one of them cannot be opened, or their classes differ.
    """
    from dgad_tk.artifacts.preprocessing import AS_IS
    from exporters.formats import load
    from exporters.onnx_open.open import NoGradients

    images = flags.named(path)
    try:
        predictor = load(path, images.shape if images else None, interface or AS_IS, trust=trust)
    except NoGradients as error:
        if gradients:
            hint = f"`dgad attack --suite blackbox` needs no gradients; {error.hint}"
            raise UserError(error.message, hint=hint) from None
        predictor = error.predictor
    if images is None:
        images = flags.load(predictor.artifact)
    check_names(path, predictor, images.classes, flags.classes)
    check_classes(path, predictor, images)
    notes = (*predictor.notes, *_notes_on_classes(predictor, images, flags.classes is not None))
    return replace(predictor, notes=(*notes, *images.notes)), images


def _notes_on_classes(predictor: "Predictor", images: "Dataset", named: bool) -> Iterator[str]:
    """What to know about labels and outputs, a sentence each. `named`: --classes says which is which."""
    from dgad_tk.data.labels.order import sorted_as_text

    if predictor.artifact is not None:
        return
    if named:
        yield f"the file's outputs are taken to be {few(images.classes)}, as --classes says"
    elif doubt := sorted_as_text(images.classes):
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
