"""What a run was begun with: images and teacher by their SHA-256, wherever they lie, and its settings."""

from pathlib import Path
from typing import Any

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import read_weights, save_record
from dgad_tk.common import UserError
from dgad_tk.config.training import FREE, PLACES, TrainConfig, differing
from dgad_tk.data import Dataset


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The keys of a config that change the weights, in plain values."""
    return config.model_dump(mode="json", exclude=FREE | PLACES)


def check_settings(folder: RunFolder, begun: dict[str, Any], config: TrainConfig) -> None:
    """See that a checkpoint was trained with the config that goes on with it.

    Args:
        begun: `settings_of` the config that the checkpoint was written under.

    Raises:
        UserError: it was not.
    """
    if others := differing(settings_of(config), begun):
        raise UserError(
            f"'{folder.config}' is not what '{folder.last}' was trained with: " + "; ".join(others),
            hint="put config.yaml back as it was, or start a new run",
        )


def check_finished(config: TrainConfig, folder: RunFolder, dataset: Dataset, teacher_name: str = "") -> None:
    """See that the weights of a finished run are those of its settings, its images and its teacher.

    Raises:
        UserError: they are another run's.
    """
    _, record = read_weights(folder.best)
    check_origin(
        folder,
        {"teacher": record.teacher, "dataset": str(record.training.get("dataset_sha256", dataset.sha256))},
        {"teacher": teacher_name or record.teacher, "dataset": dataset.sha256},
    )
    made = {"student": record.model, "method": record.method} | {
        key: record.training[key] for key in ("seed", "epochs", "limit_train") if key in record.training
    }
    if others := differing(settings_of(config), made):
        raise UserError(
            f"the weights in '{folder.path}' are not of its config.yaml: " + "; ".join(others), hint="start a new run"
        )


def check_origin(folder: RunFolder, begun: dict[str, str], now: dict[str, str]) -> None:
    """See that a run goes on with what it was begun with. Of a teacher `name sha256`, the SHA-256 counts.

    Raises:
        UserError: it does not.
    """
    for what, wanted in now.items():
        if begun.get(what, "").rpartition(" ")[2] != wanted.rpartition(" ")[2]:
            raise UserError(
                f"the run in '{folder.path}' was begun with another {what}: {begun.get(what)}, not {wanted}",
                hint=f"put the old {what} back, or start a new run",
            )


def name_new_places(weights: Path, dataset: Dataset) -> bool:
    """Let the record of a run's weights say where its images lie now; whether it said something else.

    Not to be called once they are somebody's teacher: their SHA-256 is what that one is known by.
    """
    if not weights.is_file():
        return False
    _, record = read_weights(weights)
    if record.dataset_options == dataset.options:
        return False
    save_record(weights, record.model_copy(update={"dataset_options": dataset.options}))
    return True
