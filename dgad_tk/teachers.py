"""Teachers from files: opened, checked against the images, frozen."""

from pathlib import Path

from torch import nn

from dgad_tk.checkpoint import load_model
from dgad_tk.common import UserError, sha256_file
from dgad_tk.data import Dataset
from dgad_tk.runs import weights_of

SUFFIXES = (".safetensors",)


def open_teacher(source: Path, dataset: Dataset) -> tuple[nn.Module, str]:
    """The teacher in a weights file or run folder, in eval mode with frozen weights, and `name sha256` of it.

    Raises:
        UserError: it cannot be read, or was made for other images or classes.
    """
    weights = weights_of(source)
    if weights.suffix not in SUFFIXES:
        raise UserError(
            f"cannot read '{weights}' as a teacher: expected {' or '.join(SUFFIXES)}",
            hint="a run folder or best.safetensors of `dgad train` can teach",
        )
    teacher, artifact = load_model(weights)
    if artifact.input_shape[0] != dataset.shape[0]:
        raise UserError(
            f"the teacher takes {artifact.input_shape[0]} channels, '{dataset.name}' has {dataset.shape[0]}",
            hint="train a teacher on this dataset: --teacher auto",
        )
    if artifact.classes != dataset.classes:
        raise UserError(
            f"the teacher knows {len(artifact.classes)} classes ({', '.join(artifact.classes[:5])}, ...), "
            f"'{dataset.name}' has {len(dataset.classes)} ({', '.join(dataset.classes[:5])}, ...)",
            hint="train a teacher on this dataset: --teacher auto",
        )
    return teacher.eval().requires_grad_(False), f"{artifact.model} {sha256_file(weights)}"
