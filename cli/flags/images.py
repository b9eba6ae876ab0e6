"""Flags that say which images a command works on, and how pictures become them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.flags.classes import put_in_order
from dgad_tk.common import UserError

if TYPE_CHECKING:
    from dgad_tk.artifacts.record import Artifact
    from dgad_tk.data import Dataset
    from dgad_tk.data.images.size import Size, Written


def image_size(default: str) -> Any:
    """The option --image-size, whose value is an int for a square, else `HxW`; `default` is said in its help."""

    def read(text: Any) -> "Written":
        from dgad_tk.data.images.size import size_of, written

        return written(size_of(text))

    help_text = f"Size of an image folder's images: 224, or height x width: 48x192. {default}"
    return typer.Option("--image-size", help=help_text, parser=read, metavar="SIZE")


DatasetName = Annotated[
    str | None, typer.Option("--dataset", help="See `dgad list datasets`. [the one the model was trained on]")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Folder of the images. [as in training]")]
ImageSize = Annotated[Any, image_size("[as the file says]")]
RESIZE_HELP = "How pictures of a folder get that size: squeeze, crop or pad."
Resize = Annotated[str | None, typer.Option("--resize", help=f"{RESIZE_HELP} [as in training; squeeze]")]


@dataclass(frozen=True)
class ImageFlags:
    """What --dataset, --data-dir, --image-size, --resize and --classes say; None for what is not given."""

    dataset: str | None = None
    data_dir: Path | None = None
    image_size: "Written | None" = None
    resize: str | None = None
    classes: str | None = None

    @property
    def size(self) -> "Size | None":
        """(H, W) as --image-size says."""
        from dgad_tk.data.images.size import size_of

        return size_of(self.image_size) if self.image_size is not None else None

    def load(
        self,
        artifact: "Artifact | None",
        shape: tuple[int, int, int] | None = None,
        only: str | None = None,
        names: Sequence[str] = (),
    ) -> "Dataset":
        """The dataset that the flags name, its classes in the order of --classes. The record says what they leave open.

        With all classes named, a folder of one class is enough for a split alone.

        Args:
            shape: (C, H, W) that an image folder is brought to; None leaves it to flags and record.
            only: the one split that has to be there; None if there is to be training.
            names: of all classes in their order without --classes, if those of the images are among them.

        Raises:
            UserError: neither names one, it cannot be loaded, or --classes does not fit it.
        """
        from dgad_tk.data import load_dataset
        from dgad_tk.data.labels.order import in_order

        name, data_dir = self.dataset, self.data_dir
        options: dict[str, Any] = {"image_size": self.image_size, "resize": self.resize, "channels": None}
        if artifact is not None and name in (None, artifact.dataset):
            known = artifact.dataset_options
            name = artifact.dataset
            data_dir = data_dir or (Path(known["data_dir"]) if "data_dir" in known else None)
            options = {key: known.get(key) if given is None else given for key, given in options.items()}
        if name is None:
            raise UserError(
                "the model carries no dgad metadata record, so its images are unknown",
                hint="name them with --dataset",
            )
        if shape is not None:
            options |= {"channels": shape[0], "image_size": shape[1:]}
        images = load_dataset(name, data_dir=data_dir, only=only, least=1 if only else 2, **options)
        if self.classes is None and set(images.classes) <= set(names):
            return in_order(images, names)
        images = put_in_order(images, self.classes)
        if len(images.classes) < 2:
            raise UserError(
                f"{data_dir}: at least 2 class folders are needed for {only}, found only '{images.classes[0]}'",
                hint="one is enough with --classes and the names of all outputs, in their order",
            )
        return images
