"""The images that a command works on: named by flags, else by the model's own record."""

from pathlib import Path
from typing import TYPE_CHECKING

from dgad_tk.common import UserError

if TYPE_CHECKING:
    from dgad_tk.artifact import Artifact
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
