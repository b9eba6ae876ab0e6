"""`dgad train`."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.alike import ALIKE_DATASETS, compute_alike
from cli.flags.values import TRUST, numbers, real, whole
from dgad_tk.common import UserError

if TYPE_CHECKING:
    from dgad_tk.artifacts.runs import RunFolder
    from dgad_tk.config.training import TrainConfig


def train(
    config: Annotated[
        str | None, typer.Option(help="YAML file or recipe (`dgad list recipes`); flags override it.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="See `dgad list datasets`. [digits]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the dataset if it is not there.")] = False,
    image_size: Annotated[int | None, whole("--image-size", "Resize an image folder to this. [32]")] = None,
    method: Annotated[
        str | None, typer.Option(help="See `dgad list methods`; NAME+igdm adds gradient matching. [dgad]")
    ] = None,
    student: Annotated[str | None, typer.Option(help="See `dgad list models`. [resnet8]")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Run folder, weights (.safetensors, a PyTorch checkpoint), .onnx, with --trust .pt2 or TorchScript "
            "(.pt), or auto: train one first. [auto]"
        ),
    ] = None,
    teacher_model: Annotated[
        str | None, typer.Option(help="Network of an auto teacher, or of foreign weights. [resnet20, told from them]")
    ] = None,
    teacher_mean: Annotated[
        str | None,
        typer.Option(
            help="Mean per channel that a foreign teacher's images are normalised by: 0.49,0.48,0.45. [nothing]"
        ),
    ] = None,
    teacher_std: Annotated[
        str | None, typer.Option(help="Standard deviation per channel, given with --teacher-mean.")
    ] = None,
    teacher_method: Annotated[str | None, typer.Option(help="How an auto teacher is trained. [trades]")] = None,
    teacher_epochs: Annotated[
        int | None, whole("--teacher-epochs", "Epochs of an auto teacher. [as --epochs, or 20 on digits]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value: any key of config.yaml, or METHOD.option. Repeatable."),
    ] = None,
    epochs: Annotated[
        int | None, whole("--epochs", "Epochs of training. [25 on digits, 40 on fashion-mnist, else 200]")
    ] = None,
    batch_size: Annotated[int | None, whole("--batch-size", "Images per step. [64 on digits, else 128]")] = None,
    seed: Annotated[int | None, whole("--seed", "Seed of every random draw. [0]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Precision of the inner maximisation: fp32 or bf16. [fp32]")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile for the inner maximisation.")] = False,
    device: Annotated[str | None, typer.Option(help="Where to compute: auto, cpu or cuda. [auto]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [runs/DATASET-METHOD-STUDENT]")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or with the newest unfinished one.")
    ] = False,
    checkpoint_minutes: Annotated[
        float | None,
        real("--checkpoint-minutes", "Minutes between checkpoints within an epoch; its end is always saved. [10]"),
    ] = None,
    limit_train: Annotated[int | None, whole("--limit-train", "Use the first N training images.")] = None,
    trust: TRUST = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a student; first its teacher, if it needs one and none is given.

    Ctrl-C ends the run after the step it is in, and saves it; a second Ctrl-C ends it at once.
    """
    from dgad_tk.config.training import TrainConfig

    keys = {name: value for name, value in locals().items() if name in TrainConfig.model_fields}
    flags = {name: value for name, value in keys.items() if value is not None and value is not False}
    for name in ("teacher_mean", "teacher_std"):
        if name in flags:
            flags[name] = numbers(flags[name], f"--{name.replace('_', '-')}")
    run_config, out = _configured(flags, config, settings or [], out, resume)
    if run_config.dataset in ALIKE_DATASETS:
        compute_alike()

    from cli.flags.teacher import model_file_teacher
    from cli.printing.progress import TrainingProgress
    from dgad_tk.distributed import launched
    from dgad_tk.training.job import Watcher
    from dgad_tk.training.train import train as run_training

    leads = launched().leads
    quiet = quiet or not leads
    if not quiet:
        _announce(run_config)
    taken: list[RunFolder] = []
    try:
        with TrainingProgress(quiet=quiet) as progress:
            folder = run_training(
                run_config,
                out=out,
                resume=resume,
                teacher=model_file_teacher(run_config, trust=trust),
                download=download,
                watcher=Watcher(
                    progress=progress, message=progress.message, stopping=_say_stopping, folder=taken.append
                ),
            )
    except KeyboardInterrupt:
        if leads:
            _say_how_to_resume(taken, launched().size)
        raise
    if leads:
        _print_result(folder, run_config, as_json)


def _announce(config: "TrainConfig") -> None:
    """What is about to happen, on stderr."""
    from dgad_tk.config.training import AUTO
    from dgad_tk.methods import find_method
    from dgad_tk.models import find_model
    from dgad_tk.strangers.number_text import format_fraction

    find_model(config.student)
    threat = f"{config.attack.norm} {format_fraction(config.attack.eps)}, {config.attack.steps} steps"
    text = f"{config.student} by {config.method} on {config.dataset} for {config.epochs} epochs ({threat})"
    if find_method(config.method).needs_teacher:
        auto = f"a {config.teacher_model} that is trained first, by {config.teacher_method}, since none was given"
        text += f"; teacher: {auto if config.teacher == AUTO else config.teacher}"
    print(text, file=sys.stderr)


def _say_stopping() -> None:
    """In a signal handler, where print might be in the middle of something."""
    os.write(2, b"\nstopping after this step; once more stops at once\n")


def _say_how_to_resume(taken: "list[RunFolder]", processes: int) -> None:
    """On stderr, as a command to copy; `taken` is empty where the run has no folder yet."""
    if not (taken and taken[0].exists()):
        print("\nnothing was written yet: the same command begins anew", file=sys.stderr)
        return
    again = f"dgad train --out {shlex.quote(str(taken[0].path))} --resume"
    print(f"\nto go on: {again}" + (" (under torchrun, as before)" if processes > 1 else ""), file=sys.stderr)


def _configured(
    given: dict[str, Any], config: str | None, settings: list[str], out: Path | None, resume: bool
) -> tuple["TrainConfig", Path | None]:
    """Defaults, then the config file or the run to resume, then `DGAD_*`, then flags."""
    from dgad_tk.artifacts.runs import RunFolder, newest_run
    from dgad_tk.config.parsing import validated
    from dgad_tk.config.recipe import load_recipe, over
    from dgad_tk.config.settings import from_environment, parse_settings
    from dgad_tk.config.training import TrainConfig

    values: dict[str, Any] = {}
    if resume:
        folder = RunFolder(out) if out else newest_run(finished=False)
        if not folder.exists():
            raise UserError(f"nothing to resume in '{folder.path}'", hint="start the run without --resume")
        out = folder.path
        values = folder.read_config().model_dump(mode="json")
    if config:
        recipe = load_recipe(config)
        values |= recipe.values | ({"paper": recipe.paper} if recipe.paper else {})
    values |= from_environment(os.environ)
    values |= given
    values = over(values, parse_settings(settings))
    found = validated(TrainConfig, values, "config").resolved()
    if "teacher" not in values:
        _refuse_another_teacher(found)
    return found, out


def _refuse_another_teacher(config: "TrainConfig") -> None:
    """A run whose teacher is one certain file does not train some other without being told to.

    Raises:
        UserError: the paper's teacher is such a file.
    """
    instruction = config.paper.get("teacher_file")
    if not instruction:
        return
    from dgad_tk.methods import find_method

    if find_method(config.method).needs_teacher:
        raise UserError(
            f"the paper's teacher has to be given: {instruction}",
            hint="--teacher FILE [--teacher-model NAME]; --teacher auto trains a "
            f"{config.teacher_model} by {config.teacher_method} instead",
        )


def _print_result(folder: "RunFolder", config: "TrainConfig", as_json: bool) -> None:
    from dgad_tk.artifacts.weights import read_weights
    from dgad_tk.config.recipe import printed_figures, printed_place

    _, artifact = read_weights(folder.best)
    training = artifact.training
    if as_json:
        print(json.dumps({"run": str(folder.path), **training} | ({"paper": config.paper} if config.paper else {})))
        return
    accuracies = f"clean {training['clean_accuracy']:.1%}, PGD {training['robust_accuracy']:.1%}"
    print(
        f"{folder.path}: {artifact.model} by {artifact.method}, best epoch {training['best_epoch']} of "
        f"{training['epochs']}: {accuracies} ({training['selection_images']} {training['selected_on']} images)"
    )
    if figures := printed_figures(config.paper):
        print(f"paper: {figures} ({printed_place(config.paper)}); here: {accuracies} on {training['selected_on']}")
    if training["selected_on"] == "test":
        print(
            "note: the epoch was chosen on the test images, so these are not held-out figures",
            file=sys.stderr,
        )
    print("next: dgad export --format onnx", file=sys.stderr)
