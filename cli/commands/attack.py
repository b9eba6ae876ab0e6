"""`dgad attack`."""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cli.flags.budget import remember, remembered, seconds_of
from cli.flags.models import default_eps, open_model
from cli.flags.preprocessing import interface_of
from cli.flags.surrogates import surrogates_of
from cli.flags.values import NORMS, TRUST, radii_of, whole
from cli.printing.matrix import matrix_of, matrix_table
from cli.printing.plan import plan_table, summary
from cli.printing.progress import AttackProgress
from cli.printing.results_table import print_json, results_table
from dgad_tk.common import UserError, lookup

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import Predictor
    from evaluators.results import Results


def attack(
    context: typer.Context,
    model: Annotated[list[Path], typer.Option(help=".onnx, .pt (TorchScript), .pt2 or .safetensors. Repeatable.")],
    suite: Annotated[list[str] | None, typer.Option(help="See `dgad list suites`. Repeatable. [fast]")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="See `dgad list attacks`. Repeatable.")] = None,
    dataset: Annotated[str | None, typer.Option(help="[the one the model was trained on]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the images. [as in training]")] = None,
    image_size: Annotated[int | None, whole("--image-size", "Resize an image folder to this. [as in training]")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    limit: Annotated[
        int | None, whole("--limit", "The first N images of a fixed stratified order. [all]", least=1)
    ] = None,
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
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
        typer.Option(help="What a model from elsewhere wants subtracted: one number, or one per channel. [nothing]"),
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
        int | None, whole("--batch-size", "Images at a time. [500 of 8x8, 256 of 32x32, 16 of 224x224]", least=1)
    ] = None,
    seed: Annotated[int, whole("--seed", "Of every random draw.", least=0, most=2**32 - 1)] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder for results. [attacks/MODEL-SHA]")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run on a few images, print what it would cost, and stop.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="Take as many images as fit into this time: 90s, 10m, 1h30m.")
    ] = None,
    trust: TRUST = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json instead of a table.")] = False,
) -> None:
    """Attack model files with gradients and let their own runtime judge.

    What is finished is kept: after Ctrl-C or kill -9 the same command goes on.
    """
    lookup(NORMS, norm, "norm")
    lookup({"train": 0, "val": 0, "test": 0}, split, "split")
    radii = radii_of(eps, norm)
    seconds = seconds_of(budget) if budget is not None else None
    changes = _settings(settings or [])
    interface = interface_of(mean, std, input_range, layout, logits_output)
    for path in [*model, *(surrogate or [])]:
        if not path.exists():
            raise UserError(f"no such file: '{path}'", hint="`dgad export` writes student.onnx into the current folder")

    from datetime import timedelta

    from dgad_tk.distributed import by_leader, joined, pick_device
    from evaluators.attacks import ATTACKS
    from evaluators.engine.evaluate import default_batch_size, evaluate
    from evaluators.engine.pilot import pilot
    from evaluators.plan.rows import plan
    from evaluators.plan.suites import TRANSFER, expand
    from evaluators.report.files import results, write

    names = expand(suite or ([] if attack else ["fast"]), attack or [])
    _check_used(names, surrogate, changes)
    transfers = any(name.startswith(TRANSFER) for name in names)
    white = [name for name in names if not name.startswith(TRANSFER) and ATTACKS[name].needs_gradients]
    # One process may need hours more than another for its share.
    with joined(pick_device("auto"), patience=timedelta(days=7)) as here:
        quiet = quiet or not here.leads
        attacked: list[tuple[Results, Path]] = []
        plans: list[tuple[str, dict[str, Any]]] = []
        used: dict[str, str] = {}
        base = output or Path("attacks")
        examples = base / ".transfer-examples" if len(model) > 1 and transfers else None
        for path in model:
            predictor, images = open_model(
                path, dataset, data_dir, image_size, interface, gradients=bool(white), trust=trust
            )
            part = images.splits[split]
            part = part.subset(limit or len(part))
            epsilons = radii or [default_eps(predictor.artifact, images, norm)]
            surrogates = surrogates_of(surrogate, images, quiet=quiet, trust=trust) if transfers else []
            used |= {each.name: each.predictor.sha256 for each in surrogates if each.predictor}
            rows = plan(names, norm=cast(Any, norm), eps=epsilons, surrogates=surrogates, settings=changes)
            size = batch_size or default_batch_size(predictor.input_shape)
            folder = _folder(output, predictor, len(model))
            if not quiet:
                for note in predictor.notes:
                    print(f"note: {path}: {note}", file=sys.stderr)
            if dry_run:
                with AttackProgress(quiet=quiet) as progress:
                    forecast = pilot(predictor, part, rows, batch_size=size, seed=seed, on_progress=progress)
                n = by_leader(partial(forecast.affordable, seconds, len(part))) if seconds else len(part)
                plans.append((str(path), forecast.to_dict(n)))
                continue
            by_leader(partial(_check_folder, folder))
            if seconds:
                question = {
                    "budget": seconds,
                    "model": predictor.sha256,
                    "surrogates": {each.name: each.predictor and each.predictor.sha256 for each in surrogates},
                    "rows": [[row.id, row.settings, row.eps] for row in rows],
                    "most": len(part),
                    "batch_size": size,
                }
                chosen = by_leader(partial(remembered, folder, question))
                if chosen is None:
                    with AttackProgress(quiet=quiet) as progress:
                        forecast = pilot(predictor, part, rows, batch_size=size, seed=seed, on_progress=progress)
                    chosen = by_leader(partial(forecast.affordable, seconds, len(part)))
                    by_leader(partial(remember, folder, question, chosen))
                    if here.leads:
                        print(f"{path}: {summary(forecast.to_dict(chosen))}", file=sys.stderr)
                part = part.subset(chosen)
            if not quiet:
                shown = f"{len(part):,} {split} images of {images.name}"
                print(f"{path}: {len(rows)} attacks on {shown}, judged by {predictor.runtime}", file=sys.stderr)
            with AttackProgress(quiet=quiet) as progress:
                evaluation = evaluate(
                    predictor,
                    part,
                    rows,
                    classes=images.classes,
                    seed=seed,
                    batch_size=size,
                    store=folder / "units",
                    examples=examples,
                    on_progress=progress,
                )
            if not here.leads:
                continue
            answers = results(evaluation, command=shlex.join(context.obj), dataset=images.name, split=split)
            write(evaluation, answers, folder)
            attacked.append((answers, folder))
        if not here.leads:
            return
    if dry_run:
        if as_json:
            print(json.dumps([document for _, document in plans] if len(plans) > 1 else plans[0][1]))
        else:
            plan_table(plans)
        return
    if examples is not None:
        shutil.rmtree(examples, ignore_errors=True)  # every target has had them
    _show(attacked, used, base if len(model) > 1 else attacked[0][1], as_json=as_json)


def _show(attacked: "list[tuple[Results, Path]]", surrogates: dict[str, str], folder: Path, *, as_json: bool) -> None:
    """Print the results; write and print their matrix, where they make one.

    Args:
        surrogates: name to SHA-256.
        folder: of the matrix.
    """
    from evaluators.report.matrix import write_matrix

    matrix = matrix_of([results for results, _ in attacked], surrogates)
    if matrix is not None:
        write_matrix(matrix, folder / "matrix.json")
    if as_json:
        print_json([results for results, _ in attacked])
        return
    results_table(attacked)
    if matrix is not None:
        matrix_table(matrix, folder / "matrix.json")


def _settings(settings: list[str]) -> dict[str, dict[str, Any]]:
    """`--set ATTACK.key=value` as what is set for each attack."""
    from dgad_tk.config.settings import parse_setting

    changes: dict[str, dict[str, Any]] = {}
    for key, value in map(parse_setting, settings):
        attack, dot, name = key.partition(".")
        if not dot:
            raise UserError(f"--set needs ATTACK.key=value, got '{key}'", hint="for example --set pgd.steps=50")
        changes.setdefault(attack, {})[name] = value
    return changes


def _check_used(names: list[str], surrogate: list[Path] | None, changes: Mapping[str, object]) -> None:
    """See that everything that is given belongs to an attack that runs.

    Raises:
        UserError: it does not.
    """
    from evaluators.attacks import ATTACKS
    from evaluators.plan.suites import TRANSFER

    if surrogate and not any(name.startswith(TRANSFER) for name in names):
        raise UserError("--surrogate is given, but no transfer attack", hint="--suite full or --attack transfer:pgd")
    for name in changes:
        lookup(ATTACKS, name, "attack")
        if name not in {each.removeprefix(TRANSFER) for each in names}:
            raise UserError(f"--set {name}.… is given, but '{name}' does not run", hint=f"--attack {name} adds it")


def _check_folder(folder: Path) -> None:
    """Make the results folder, before hours of work for it.

    Raises:
        UserError: it holds results that are not ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = folder / "results.json"
    if old.exists() and '"dgad/results/' not in old.read_text(encoding="utf-8", errors="replace")[:200]:
        raise UserError(f"'{old}' was not written by dgad", hint="choose another --output")


def _folder(output: Path | None, predictor: "Predictor", models: int) -> Path:
    assert predictor.path is not None
    name = f"{predictor.path.stem}-{predictor.sha256[:8]}"
    if output is None:
        return Path("attacks") / name
    return output / name if models > 1 else output
