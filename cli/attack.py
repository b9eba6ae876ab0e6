"""`dgad attack`."""

import json
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cli.interface import interface_of
from cli.models import check_classes, default_eps, open_model
from dgad_tk.common import UserError, lookup, nearest, parse_fraction

if TYPE_CHECKING:
    from dgad_tk.data import Dataset
    from dgad_tk.predictor import Predictor
    from evaluators import Surrogate

NORMS = {"linf": "linf", "l2": "l2"}


def attack(
    context: typer.Context,
    model: Annotated[list[Path], typer.Option(help=".onnx, .pt (TorchScript), .pt2 or .safetensors. Repeatable.")],
    suite: Annotated[list[str] | None, typer.Option(help="See `dgad list suites`. Repeatable. [fast]")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="See `dgad list attacks`. Repeatable.")] = None,
    dataset: Annotated[str | None, typer.Option(help="[the one the model was trained on]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the images. [as in training]")] = None,
    image_size: Annotated[int | None, typer.Option(help="Resize an image folder to this. [as in training]")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    limit: Annotated[int | None, typer.Option(help="The first N images of a fixed stratified order. [all]")] = None,
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    eps: Annotated[
        str | None,
        typer.Option(help="Radius, or several: 2/255,4/255,8/255. [what the model was trained for]"),
    ] = None,
    surrogate: Annotated[
        list[Path] | None,
        typer.Option(help="Model to make transfer examples on. Repeatable. [two made on the spot]"),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="ATTACK.key=value. Repeatable.")] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="What a model from elsewhere wants subtracted: one number or one a channel. [nothing]"),
    ] = None,
    std: Annotated[str | None, typer.Option(help="And what it wants divided by. [1]")] = None,
    input_range: Annotated[
        str | None, typer.Option(help="Its pixels before that: 0-255 or -1-1. eps stays a fraction of 1. [0-1]")
    ] = None,
    layout: Annotated[str | None, typer.Option(help="nchw or nhwc. [told from its shape]")] = None,
    logits_output: Annotated[
        str | None, typer.Option(help="Name of the output to attack. [told from its outputs]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at a time. [500 of 8x8, 256 of 32x32, 16 of 224x224]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of every random draw.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder for results. [attacks/MODEL-SHA]")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json instead of a table.")] = False,
) -> None:
    """Attack model files with gradients and let their own runtime judge."""
    lookup(NORMS, norm, "norm")
    lookup({"train": 0, "val": 0, "test": 0}, split, "split")
    upper = 1.0 if norm == "linf" else math.inf
    radii = [parse_fraction(part, upper=upper) for part in eps.split(",")] if eps is not None else None
    if radii and min(radii) == 0:
        raise UserError("--eps must be above 0", hint="for example --eps 8/255")
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, got {limit}", hint="leave it out to use all images")
    changes = _settings(settings or [])
    interface = interface_of(mean, std, input_range, layout, logits_output)
    for path in [*model, *(surrogate or [])]:
        if not path.exists():
            raise UserError(f"no such file: '{path}'", hint="`dgad export` writes student.onnx into the current folder")

    from cli.progress import AttackProgress
    from cli.table import results_table
    from evaluators import evaluate, expand, plan
    from evaluators.evaluate import default_batch_size
    from evaluators.report import results, write
    from evaluators.suites import TRANSFER

    names = expand(suite or ([] if attack else ["fast"]), attack or [])
    transfers = any(name.startswith(TRANSFER) for name in names)
    if surrogate and not transfers:
        raise UserError("--surrogate is given, but no transfer attack", hint="--suite full or --attack transfer:pgd")
    for name in changes:
        if name not in {each.removeprefix(TRANSFER) for each in names}:
            raise UserError(f"--set {name}.… is given, but '{name}' does not run", hint=f"--attack {name} adds it")
    documents: list[dict[str, Any]] = []
    opened: list[Predictor] = []
    for path in model:
        predictor, images = open_model(path, dataset, data_dir, image_size, interface)
        opened.append(predictor)
        chosen = images.splits[split]
        part = chosen.subset(limit or len(chosen))
        epsilons = radii or [default_eps(predictor.artifact, images, norm)]
        surrogates: list[Surrogate] = []
        if transfers:
            surrogates = _surrogates(surrogate, images, quiet)
        rows = plan(names, norm=cast(Any, norm), eps=epsilons, surrogates=surrogates, settings=changes)
        folder = _folder(output, predictor, len(model))
        _check_folder(folder)
        if not quiet:
            shown = f"{len(part):,} {split} images of {images.name}"
            print(f"{path}: {len(rows)} attacks on {shown}, judged by {predictor.runtime}", file=sys.stderr)
            for note in predictor.notes:
                print(f"  note: {note}", file=sys.stderr)
        with AttackProgress(quiet=quiet) as progress:
            evaluation = evaluate(
                predictor,
                part,
                rows,
                seed=seed,
                batch_size=batch_size or default_batch_size(predictor.input_shape),
                store=folder / "units",
                on_progress=progress,
            )
        command = shlex.join(context.obj)
        document = results(evaluation, command=command, dataset=images.name, split=split)
        write(evaluation, document, folder)
        documents.append(document | {"folder": str(folder)})
    if as_json:
        print(
            json.dumps(
                [_without_folder(each) for each in documents] if len(documents) > 1 else _without_folder(documents[0])
            )
        )
        return
    results_table(documents)


def _without_folder(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "folder"}


def _settings(settings: list[str]) -> dict[str, dict[str, Any]]:
    from dgad_tk.config import parse_setting

    changes: dict[str, dict[str, Any]] = {}
    for key, value in map(parse_setting, settings):
        attack, dot, name = key.partition(".")
        if not dot:
            raise UserError(f"--set needs ATTACK.key=value, got '{key}'", hint="for example --set pgd.steps=50")
        changes.setdefault(attack, {})[name] = value
    if changes:
        from evaluators.attacks import ATTACKS

        for attack in changes:
            if attack not in ATTACKS:
                raise UserError(f"unknown attack '{attack}' in --set", hint=nearest(attack, ATTACKS))
    return changes


def _check_folder(folder: Path) -> None:
    """Make the results folder, before hours of work for it.

    Raises:
        UserError: it holds results that are not ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = folder / "results.json"
    if old.exists() and '"dgad/results/' not in old.read_text(encoding="utf-8", errors="replace")[:200]:
        raise UserError(f"'{old}' was not written by dgad", hint="choose another --output")


def _surrogates(files: list[Path] | None, images: "Dataset", quiet: bool) -> "list[Surrogate]":
    from evaluators import Surrogate
    from evaluators.surrogates import made_on_the_spot
    from exporters import load

    if not files:
        from cli.progress import TrainingProgress

        with TrainingProgress(quiet=quiet) as progress:
            return made_on_the_spot(images, on_progress=progress)
    found: list[Surrogate] = []
    for path in files:
        predictor = load(path, images.shape)
        if predictor.input_shape != images.shape or predictor.classes != len(images.classes):
            raise UserError(
                f"surrogate '{path}' takes {predictor.input_shape} and gives {predictor.classes} classes, "
                f"{images.name} has {images.shape} and {len(images.classes)}",
                hint="a surrogate must be trained for the same images",
            )
        check_classes(path, predictor, images)
        taken = {each.name for each in found}
        name = path.stem if path.stem not in taken else f"{path.stem}-{predictor.sha256[:8]}"
        found.append(Surrogate(name, predictor))
    return found


def _folder(output: Path | None, predictor: "Predictor", models: int) -> Path:
    assert predictor.path is not None
    name = f"{predictor.path.stem}-{predictor.sha256[:8]}"
    if output is None:
        return Path("attacks") / name
    return output / name if models > 1 else output
