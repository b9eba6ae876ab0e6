"""The model files that a command works on, and the images and the threat that belong to them."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dgad_tk.common import UserError
from dgad_tk.strangers.names import same_names

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import Predictor
    from dgad_tk.artifacts.preprocessing import Interface
    from dgad_tk.artifacts.record import Artifact
    from dgad_tk.data import Dataset


def dataset_of(
    artifact: "Artifact | None",
    name: str | None = None,
    data_dir: Path | None = None,
    image_size: int | None = None,
) -> "Dataset":
    """The dataset that the flags name, what they leave open taken from the record.

    Raises:
        UserError: neither names one, or it cannot be loaded.
    """
    from dgad_tk.data import load_dataset

    if artifact is None and name is None:
        raise UserError(
            "the model carries no dgad metadata record, so its images are unknown",
            hint="name them with --dataset",
        )
    if artifact is not None and name in (None, artifact.dataset):
        options = artifact.dataset_options
        name = artifact.dataset
        data_dir = data_dir or (Path(options["data_dir"]) if "data_dir" in options else None)
        image_size = image_size or options.get("image_size")
    assert name is not None
    return load_dataset(name, data_dir=data_dir, image_size=image_size)


def named_images(path: Path, dataset: str | None, data_dir: Path | None, image_size: int | None) -> "Dataset | None":
    """The images that the flags name, what they leave open taken from the record in `path`; None if they name none.

    Raises:
        UserError: the file cannot be read, or the images cannot be loaded.
    """
    from exporters.formats import read_record

    return dataset_of(read_record(path), dataset, data_dir, image_size) if dataset is not None else None


def open_model(
    path: Path,
    dataset: str | None,
    data_dir: Path | None,
    image_size: int | None,
    interface: "Interface | None" = None,
    *,
    gradients: bool = True,
    trust: bool = False,
) -> "tuple[Predictor, Dataset]":
    """A model and its images. Either may have to say what shape the other has.

    Notes on the images join those on the model: both are for whoever reads the results.

    Args:
        gradients: of the model are needed. Without them an ONNX file may have operators that its twin lacks.
        trust: open a file that is a program (.pt, .pt2).

    Raises:
        UserError: one of them cannot be opened, or their classes differ.
    """
    from dgad_tk.artifacts.preprocessing import AS_IS
    from exporters.formats import load
    from exporters.onnx_open.open import NoGradients

    images = named_images(path, dataset, data_dir, image_size)
    try:
        predictor = load(path, images.shape if images else None, interface or AS_IS, trust=trust)
    except NoGradients as error:
        if gradients:
            hint = f"`dgad attack --suite blackbox` needs no gradients; {error.hint}"
            raise UserError(error.message, hint=hint) from None
        predictor = error.predictor
    if images is None:
        images = dataset_of(predictor.artifact, dataset, data_dir, image_size)
    check_classes(path, predictor, images)
    if predictor.artifact is None and predictor.classes != len(images.classes):
        doubt = (
            f"the file tells {predictor.classes} classes apart and {images.name} has {len(images.classes)}: "
            f"image labels are taken as numbers of logits, 0 for '{images.classes[0]}'"
        )
        predictor = replace(predictor, notes=(*predictor.notes, doubt))
    return replace(predictor, notes=(*predictor.notes, *images.notes)), images


def check_classes(path: Path, predictor: "Predictor", images: "Dataset") -> None:
    """The labels of the images mean what the model's logits mean, as far as its record says.

    Raises:
        UserError: their classes differ.
    """
    if predictor.artifact is not None and not same_names(predictor.artifact.classes, images.classes):
        raise UserError(
            f"'{path}' knows the classes {_few(predictor.artifact.classes)}, {images.name} has {_few(images.classes)}",
            hint="name the images it was trained for with --dataset and --data-dir",
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", … ({len(names)})" if len(names) > 4 else "")


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
