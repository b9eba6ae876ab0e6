"""`dgad train`."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands.alike import ALIKE_DATASETS, compute_alike
from cli.flags.images import RESIZE_HELP
from cli.flags.images import image_size as image_size_option
from cli.flags.training.steps import (
    Accumulate,
    Augment,
    DecayWeightsOnly,
    FreezeBn,
    Init,
    InitMean,
    InitStd,
    Optimizer,
)
from cli.flags.values import AsJson, Quiet, Seed, Trust, numbers, real, whole
from cli.printing.terminal import say
from dgad_tk.common import UserError

if TYPE_CHECKING:
    from dgad_tk.artifacts.runs import RunFolder
    from dgad_tk.config.training import TrainConfig
    from dgad_tk.training.job import Progress as TrainingState


def train(
    config: Annotated[
        str | None, typer.Option(help="YAML file or recipe (`dgad list recipes`); flags override it.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="See `dgad list datasets`. [digits]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the dataset if it is not there.")] = False,
    image_size: Annotated[Any, image_size_option("[32]")] = None,
    resize: Annotated[str | None, typer.Option(help=f"{RESIZE_HELP} [squeeze]")] = None,
    method: Annotated[
        str | None, typer.Option(help="See `dgad list methods`; NAME+igdm+saad adds two add-ons. [dgad]")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="See `dgad list models`, or your own: nets/mine.py:build or package.module:build. [resnet8]"),
    ] = None,
    init: Init = None,
    init_mean: InitMean = None,
    init_std: InitStd = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Run folder, weights (.safetensors or a PyTorch checkpoint) or .onnx; with --trust also .pt2 and "
            "TorchScript (.pt). auto trains one first. [auto]"
        ),
    ] = None,
    teacher_model: Annotated[
        str | None,
        typer.Option(
            help="Network of an auto teacher, or of weights from elsewhere, named as a student's. "
            "[resnet20; told from the weights]"
        ),
    ] = None,
    teacher_mean: Annotated[
        str | None,
        typer.Option(help="Mean per channel that a teacher from elsewhere wants subtracted: 0.49,0.48,0.45. [nothing]"),
    ] = None,
    teacher_std: Annotated[
        str | None, typer.Option(help="Standard deviation per channel that it wants the rest divided by.")
    ] = None,
    teacher_method: Annotated[str | None, typer.Option(help="How an auto teacher is trained. [trades]")] = None,
    teacher_epochs: Annotated[
        int | None, whole("--teacher-epochs", "Epochs of an auto teacher. [as --epochs, or 20 on digits]")
    ] = None,
    teacher_in_attack: Annotated[
        str | None,
        typer.Option(
            help="How an attack that asks the teacher does so: exact in every step, linear by one slope of it, none by "
            "its answer to the clean image. [exact]"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of config.yaml, or METHOD.option. Repeatable."),
    ] = None,
    epochs: Annotated[
        int | None, whole("--epochs", "Epochs of training. [25 on digits, 40 on fashion-mnist, else 200]")
    ] = None,
    batch_size: Annotated[int | None, whole("--batch-size", "Images per step. [64 on digits, else 128]")] = None,
    accumulate: Accumulate = None,
    optimizer: Optimizer = None,
    decay_weights_only: DecayWeightsOnly = False,
    freeze_bn: FreezeBn = False,
    augment: Augment = None,
    seed: Seed = None,
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
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a student, and before it a teacher if none is given.

    Ctrl-C ends the run after the step it is in, and saves it; a second Ctrl-C ends it at once. report.html in the run
    folder shows how the training goes.
    """
    from dgad_tk.config.training import TrainConfig

    keys = {name: value for name, value in locals().items() if name in TrainConfig.model_fields}
    flags = {name: value for name, value in keys.items() if value is not None and value is not False}
    for name in ("teacher_mean", "teacher_std", "init_mean", "init_std"):
        if name in flags:
            flags[name] = numbers(flags[name], f"--{name.replace('_', '-')}")
    run_config, out = _configured(flags, config, settings or [], out, resume, teacher_in_attack)
    if run_config.dataset in ALIKE_DATASETS:
        compute_alike()  # before anything imports torch
    from cli.flags.training.networks import check_typed, needs_trust
    from dgad_tk.config.settings import from_environment, parse_settings

    typed = {*flags, *from_environment(os.environ), *parse_settings(settings or [])}
    check_typed(run_config, typed, trust=trust)

    from cli.flags.teacher import fitted_to_files, model_file_teacher
    from cli.flags.training.start import graph_start
    from cli.printing.progress import TrainingProgress
    from cli.printing.run_page import RunPage
    from dgad_tk.distributed import launched
    from dgad_tk.training.train import train as run_training

    leads = launched().leads
    quiet = quiet or not leads
    run_config, start = graph_start(run_config, trust=trust)
    run_config, notes = fitted_to_files(run_config, trust=trust)
    for note in notes if leads else ():
        print(f"note: {note}", file=sys.stderr)
    if not quiet:
        print(_announcement(run_config), file=sys.stderr)
    taken: list[RunFolder] = []
    try:
        with TrainingProgress(quiet=quiet) as progress:
            page = RunPage(progress.message)

            def told(state: "TrainingState") -> None:
                progress(state)
                page.after(state)

            def took(folder: "RunFolder") -> None:
                taken.append(folder)
                page.begin(folder)

            try:
                folder = run_training(
                    run_config,
                    out=out,
                    resume=resume,
                    teacher=model_file_teacher(run_config, trust=trust),
                    start=start(progress.message) if start is not None else None,
                    trust=trust,
                    download=download,
                    on_progress=told,
                    on_message=progress.message,
                    on_stop=_say_stopping,
                    on_folder=took,
                )
            finally:  # also of a run that was interrupted, or whose loss became NaN
                page.write()
    except KeyboardInterrupt:
        if leads:
            again = _how_to_go_on(taken, launched().size, trust=trust or needs_trust(run_config))
            print(again, file=sys.stderr)
        raise
    if leads:
        _print_result(folder, run_config, page.path, as_json)
        if not as_json:
            trusting = " --trust" * needs_trust(run_config, "student")
            print(f"next: dgad export --format onnx{trusting}", file=sys.stderr)
        page.raise_bug()


def _announcement(config: "TrainConfig") -> str:
    """What is about to happen."""
    from dgad_tk.config.training import AUTO
    from dgad_tk.data.endings import counted
    from dgad_tk.methods import find_method
    from dgad_tk.strangers.number_text import format_fraction

    text_of = f"{config.student}, from '{config.init}'," if config.init is not None else config.student
    threat = f"{config.attack.norm} {format_fraction(config.attack.eps)}, {config.attack.steps} steps"
    text = f"{text_of} by {config.method} on {config.dataset} for {counted(config.epochs, 'epoch')} ({threat})"
    if not find_method(config.method).needs_teacher:
        return text
    auto = f"a {config.teacher_model} that is trained first, by {config.teacher_method}, since none was given"
    return f"{text}; teacher: {auto if config.teacher == AUTO else config.teacher}"


def _say_stopping() -> None:
    """In a signal handler, where print might be in the middle of something."""
    os.write(2, b"\nstopping after this step; once more stops at once\n")


def _how_to_go_on(taken: "list[RunFolder]", processes: int, *, trust: bool) -> str:
    """What to do after an interrupt, as a command to copy; `taken` is empty if the run has no folder yet."""
    if not (taken and taken[0].exists()):
        return "\nnothing was written yet: the same command begins anew"
    again = f"dgad train --out {shlex.quote(str(taken[0].path))} --resume{' --trust' if trust else ''}"
    return f"\nto go on: {again}" + (" (under torchrun, as before)" if processes > 1 else "")


def _configured(
    given: dict[str, Any],
    config: str | None,
    settings: list[str],
    out: Path | None,
    resume: bool,
    teacher_in_attack: str | None = None,
) -> tuple["TrainConfig", Path | None]:
    """The config and the run folder: defaults, then the config file or the run to resume, then `DGAD_*`, then flags."""
    from cli.flags.teacher import with_option
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
    if teacher_in_attack is not None:
        values["method_options"] = with_option(values.get("method_options"), "teacher_in_attack", teacher_in_attack)
    values = over(values, parse_settings(settings))
    found = validated(TrainConfig, values, "config").resolved()
    instruction = found.paper.get("teacher_file")
    if instruction and "teacher" not in values:
        from dgad_tk.methods import find_method  # torch

        if find_method(found.method).needs_teacher:
            raise UserError(
                f"the paper's teacher has to be given: {instruction}",
                hint="--teacher FILE [--teacher-model NAME]; --teacher auto trains a "
                f"{found.teacher_model} by {found.teacher_method} instead",
            )
    return found, out


def _print_result(folder: "RunFolder", config: "TrainConfig", report: Path | None, as_json: bool) -> None:
    from dgad_tk.artifacts.weights import read_weights
    from dgad_tk.config.recipe import printed_figures, printed_place

    _, artifact = read_weights(folder.best)
    training = artifact.training
    if as_json:
        document = {"schema": "dgad/train/1", "run": str(folder.path), "report": str(report) if report else None}
        print(json.dumps(document | training | ({"paper": config.paper} if config.paper else {})))
        return
    accuracies = f"clean {training['clean_accuracy']:.1%}, PGD {training['robust_accuracy']:.1%}"
    say(
        f"{folder.path}: {artifact.model} by {artifact.method}, best epoch {training['best_epoch']} of "
        f"{training['epochs']}: {accuracies} ({training['selection_images']} {training['selected_on']} images)"
    )
    if figures := printed_figures(config.paper):
        say(f"paper: {figures} ({printed_place(config.paper)}); here: {accuracies} on {training['selected_on']}")
    if report:
        say(f"report: {report}")
    if training["selected_on"] == "test":
        print("note: the epoch was chosen on the test images, so these are not held-out figures", file=sys.stderr)
