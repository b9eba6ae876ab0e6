"""`dgad train`."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgad_tk.common import UserError

if TYPE_CHECKING:
    from dgad_tk.config import TrainConfig
    from dgad_tk.runs import RunFolder

RECIPES = Path(__file__).parent.parent / "dgad_tk" / "recipes"


def train(
    config: Annotated[str | None, typer.Option(help="YAML file or recipe; flags override it.")] = None,
    dataset: Annotated[str | None, typer.Option(help="See `dgad list datasets`. [digits]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Resize an image folder to this. [32]")] = None,
    method: Annotated[str | None, typer.Option(help="See `dgad list methods`. [dgad]")] = None,
    student: Annotated[str | None, typer.Option(help="See `dgad list models`. [resnet8]")] = None,
    teacher: Annotated[
        str | None, typer.Option(help=".safetensors file, run folder, or auto: train one first. [auto]")
    ] = None,
    teacher_model: Annotated[str | None, typer.Option(help="Network of an auto teacher. [resnet20]")] = None,
    teacher_method: Annotated[str | None, typer.Option(help="How an auto teacher is trained. [trades]")] = None,
    teacher_epochs: Annotated[int | None, typer.Option(help="Epochs of an auto teacher. [as --epochs]")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value: any key of config.yaml, or METHOD.option. Repeatable."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="[25 on digits, 40 on fashion-mnist, else 200]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="[64 on digits, else 128]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random draw. [0]")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16. [fp32]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. [auto]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [runs/DATASET-METHOD-STUDENT]")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or with the newest unfinished one.")
    ] = False,
    limit_train: Annotated[int | None, typer.Option(help="Use the first N training images.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a student; first its teacher, if it needs one and none is given."""
    given = {name: value for name, value in locals().items() if name in _FLAGS and value is not None}
    run_config, out = _configured(given, config, settings or [], out, resume)

    from cli.progress import TrainingProgress
    from dgad_tk.train import train as run_training

    if not quiet:
        _announce(run_config)
    with TrainingProgress(quiet=quiet) as progress:
        folder = run_training(run_config, out=out, resume=resume, on_progress=progress)
    _print_result(folder, as_json)


def _announce(config: "TrainConfig") -> None:
    """What is about to happen, on stderr."""
    from dgad_tk.common import format_fraction
    from dgad_tk.methods import find_method
    from dgad_tk.models import find_model

    find_model(config.student)
    threat = f"{config.attack.norm} {format_fraction(config.attack.eps)}, {config.attack.steps} steps"
    text = f"{config.student} by {config.method} on {config.dataset} for {config.epochs} epochs ({threat})"
    if find_method(config.method).needs_teacher:
        auto = f"a {config.teacher_model} that is trained first, by {config.teacher_method}, since none was given"
        text += f"; teacher: {auto if config.teacher == 'auto' else config.teacher}"
    print(text, file=sys.stderr)


_FLAGS = {
    "dataset",
    "data_dir",
    "image_size",
    "method",
    "student",
    "teacher",
    "teacher_model",
    "teacher_method",
    "teacher_epochs",
    "epochs",
    "batch_size",
    "seed",
    "precision",
    "device",
    "limit_train",
}


def _configured(
    given: dict[str, Any], config: str | None, settings: list[str], out: Path | None, resume: bool
) -> tuple["TrainConfig", Path | None]:
    """Defaults, then the config file or the run to resume, then `DGAD_*`, then flags."""
    from dgad_tk.config import TrainConfig, from_environment, parse_settings, read_yaml, validated
    from dgad_tk.runs import RunFolder, newest_run

    values: dict[str, Any] = {}
    if resume:
        folder = RunFolder(out) if out else newest_run(finished=False)
        if not folder.exists():
            raise UserError(f"nothing to resume in '{folder.path}'", hint="start the run without --resume")
        out = folder.path
        values = folder.read_config().model_dump(mode="json")
    if config:
        values |= read_yaml(_config_path(config))
    values |= from_environment(os.environ)
    values |= given
    changes = parse_settings(settings)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            values[key] = {**values[key], **value}
        else:
            values[key] = value
    return validated(TrainConfig, values, "config").resolved(), out


def _config_path(name: str) -> Path:
    recipe = RECIPES / f"{name}.yaml"
    if not Path(name).is_file() and recipe.is_file():
        return recipe
    return Path(name)


def _print_result(folder: "RunFolder", as_json: bool) -> None:
    from dgad_tk.checkpoint import read_weights

    _, artifact = read_weights(folder.best)
    training = artifact.training
    if as_json:
        print(json.dumps({"run": str(folder.path), **training}))
        return
    print(
        f"{folder.path}: {artifact.model} by {artifact.method}, best epoch {training['best_epoch']} of "
        f"{training['epochs']}: clean {training['clean_accuracy']:.1%}, PGD {training['robust_accuracy']:.1%} "
        f"({training['selection_images']} {training['selected_on']} images)"
    )
    if training["selected_on"] == "test":
        print(
            "note: the epoch was chosen on the test images, so these are not held-out figures",
            file=sys.stderr,
        )
    print("next: dgad export --format onnx", file=sys.stderr)
