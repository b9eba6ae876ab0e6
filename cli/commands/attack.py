"""`dgad attack`."""

import shlex
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cli.flags.budget import remember, remembered, seconds_of
from cli.flags.classes import ClassNames
from cli.flags.images import DataDir, DatasetName, ImageFlags, ImageSize, Resize
from cli.flags.models import check_files, default_eps, open_model
from cli.flags.preprocessing import ChannelOrder, InputRange, Layout, LogitsOutput, Mean, Std, interface_of
from cli.flags.surrogates import SiblingFiles, SurrogateFiles, check_used, settings_of, surrogates_of, with_siblings
from cli.flags.values import (
    NORMS,
    SEARCH_PRECISIONS,
    SPLITS,
    AsJson,
    Curve,
    Quiet,
    Seed,
    Trust,
    check_replaceable,
    radii_of,
    whole,
)
from cli.printing.again import other_command
from cli.printing.matrix import matrix_of, matrix_table
from cli.printing.plan import plan_table, summary
from cli.printing.progress import AttackProgress
from cli.printing.results_table import print_json, results_table
from cli.printing.run_page import Pages
from dgad_tk.common import lookup

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import Predictor
    from evaluators.engine.forecast import Forecast
    from evaluators.results import Results


def attack(
    context: typer.Context,
    model: Annotated[
        list[Path], typer.Option(metavar="FILE", help=".onnx, .pt (TorchScript), .pt2 or .safetensors. Repeatable.")
    ],
    suite: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="See `dgad list suites`. Repeatable. [fast]")
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="See `dgad list attacks`. Repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="ATTACK.KEY=VALUE", help="Such as pgd.steps=50. Repeatable.")
    ] = None,
    norm: Annotated[str, typer.Option(help="linf, l2, l1 or l0.")] = "linf",
    eps: Annotated[
        str | None, typer.Option(help="Radius, or several: 2/255,4/255,8/255. [what the model was trained for]")
    ] = None,
    curve: Curve = False,
    surrogate: SurrogateFiles = None,
    sibling: SiblingFiles = None,
    dataset: DatasetName = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    classes: ClassNames = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    limit: Annotated[
        int | None, whole("--limit", "Attack the first N images of a fixed stratified order. [all]", least=1)
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Attack as many images as fit into this time: 90s, 10m, 1h30m.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run on a few images, print what it would cost, and stop.")
    ] = False,
    batch_size: Annotated[
        int | None, whole("--batch-size", "Images at a time. [500 of 8x8, 256 of 32x32, 16 of 224x224]", least=1)
    ] = None,
    search_precision: Annotated[
        str, typer.Option(help="fp32, or bf16 where there are units for it: of the search, not of the verdict.")
    ] = "fp32",
    seed: Seed = None,
    mean: Mean = None,
    std: Std = None,
    input_range: InputRange = None,
    layout: Layout = None,
    channel_order: ChannelOrder = None,
    logits_output: LogitsOutput = None,
    output: Annotated[Path | None, typer.Option(help="Folder for results. [attacks/MODEL-SHA]")] = None,
    trust: Trust = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Attack model files; their own runtime is the judge.

    What is finished is kept: after Ctrl-C or kill -9 the same command goes on.
    """
    lookup(NORMS, norm, "norm")
    lookup(SPLITS, split, "split")
    precision = cast(Any, lookup(SEARCH_PRECISIONS, search_precision, "search precision"))
    radii = radii_of(eps, norm)
    seconds = seconds_of(budget) if budget is not None else None
    changes = settings_of(settings or [])
    interface = interface_of(mean, std, input_range, layout, logits_output, channel_order)
    check_files([*model, *(surrogate or []), *(sibling or [])])

    from datetime import timedelta

    from dgad_tk.distributed import by_leader, joined, pick_device
    from evaluators.attacks import ATTACKS
    from evaluators.engine.evaluate import default_batch_size, evaluate
    from evaluators.engine.pilot import pilot
    from evaluators.plan.rows import plan
    from evaluators.plan.suites import TRANSFER, expand
    from evaluators.report.files import results, write
    from evaluators.report.matrix import write_matrix
    from evaluators.target.judge import check_images
    from evaluators.target.precision import remarks
    from evaluators.verdict.clean_checks import may_want_others

    names = expand(suite or ([] if attack or curve else ["fast"]), attack or [], curve=norm if curve else "")
    check_used(names, surrogate, sibling, changes)
    asked = [ATTACKS[name.removeprefix(TRANSFER)] for name in names]
    transfers = any(name.startswith(TRANSFER) for name in names)
    white = any(ATTACKS[name].needs_gradients for name in names if not name.startswith(TRANSFER))
    bounded = any(spec.kind == "budget" and norm in spec.norms for spec in asked)
    flags, seed = ImageFlags(dataset, data_dir, image_size, resize, classes), seed or 0
    attacked: list[tuple[Results, Path]] = []
    plans: list[tuple[Path, Forecast, int]] = []
    used: dict[str, str] = {}
    base = output or Path("attacks")
    examples = base / ".transfer-examples" if len(model) > 1 and transfers else None
    # One process may need hours more than another for its share.
    with joined(pick_device("auto"), patience=timedelta(days=7)) as here:
        quiet = quiet or not here.leads
        if len(model) > 1 and not dry_run:
            by_leader(partial(_check_page, base))
        for path in model:
            predictor, images = open_model(path, flags, interface, gradients=white, trust=trust, only=split)
            part = images.splits[split]
            part = part.subset(limit or max(1, len(part)))
            check_images(predictor, part)
            if any(ATTACKS[name].siblings for name in names if not name.startswith(TRANSFER)):
                predictor = with_siblings(predictor, sibling, images, trust=trust)
            epsilons = radii or ([default_eps(predictor.artifact, images, norm)] if bounded else [])
            surrogates = surrogates_of(surrogate, images, quiet=quiet, trust=trust) if transfers else []
            used |= {each.name: each.predictor.sha256 for each in surrogates if each.predictor}
            rows = plan(
                names,
                norm=cast(Any, norm),
                eps=epsilons,
                surrogates=surrogates,
                settings=changes,
                search_precision=precision,
            )
            size = batch_size or default_batch_size(predictor.input_shape)
            folder = _folder(output, predictor, len(model))
            if not quiet:
                for note in (*predictor.notes, *remarks(predictor, precision, [row.search_precision for row in rows])):
                    print(f"note: {path}: {note}", file=sys.stderr)
            question = {
                "budget": seconds,
                "model": predictor.sha256,
                "surrogates": {each.name: each.predictor and each.predictor.sha256 for each in surrogates},
                "siblings": sorted(each.sha256 for each in predictor.siblings.values()),
                "rows": [[row.id, row.settings, row.eps] for row in rows],
                "most": len(part),
                "batch_size": size,
            }
            n = None
            if not dry_run:
                by_leader(partial(_make_folder, folder))
                n = by_leader(partial(remembered, folder, question)) if seconds else len(part)
            if n is None:
                with AttackProgress(quiet=quiet) as progress:
                    threat = (cast(Any, norm), epsilons) if dry_run and epsilons else None
                    forecast = pilot(
                        predictor, part, rows, batch_size=size, seed=seed, on_progress=progress, threat=threat
                    )
                n = by_leader(partial(forecast.affordable, seconds, len(part))) if seconds else len(part)
                if dry_run:
                    plans.append((path, forecast, n))
                    continue
                by_leader(partial(remember, folder, question, n))
                if here.leads:
                    print(f"{path}: {summary(forecast, n)}", file=sys.stderr)
            part = part.subset(n)
            if not quiet:
                shown = f"{len(part):,} {split} images of {images.name}"
                what = "1 attack" if len(rows) == 1 else f"{len(rows)} attacks"
                print(f"{path}: {what} on {shown}, judged by {predictor.runtime}", file=sys.stderr)
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
            if here.leads:
                answers = results(
                    evaluation,
                    command=shlex.join(context.obj),
                    dataset=images.name,
                    split=split,
                    resize=images.resize,
                    curves=curve,
                )
                write(evaluation, answers, folder)
                attacked.append((answers, folder))
                if predictor.artifact is None and not quiet and may_want_others(answers):
                    command = shlex.join(other_command(context, "inspect", path))
                    print(f"hint: `{command}` tries the usual preprocessings", file=sys.stderr)
        if not here.leads:
            return
    if dry_run:
        if as_json:
            named = {"schema": "dgad/forecast/1"}
            print_json([{**named, "model": str(path), **forecast.to_dict(n, seconds)} for path, forecast, n in plans])
        else:
            plan_table(plans, budget=seconds)
        return
    if examples is not None:
        shutil.rmtree(examples, ignore_errors=True)  # every target has had them
    answered = [each for each, _ in attacked]
    matrix, where = matrix_of(answered, used), (base if len(model) > 1 else attacked[0][1]) / "matrix.json"
    if matrix is not None:
        write_matrix(matrix, where)
    if as_json:
        print_json([each.to_dict() for each in answered])
    else:
        results_table(attacked)
        if matrix is not None:
            matrix_table(matrix, where)
    _write_pages([folder for _, folder in attacked], base, as_json=as_json)


def _make_folder(folder: Path) -> None:
    """Make the folder, before hours of work; refuse one that holds results of something else."""
    folder.mkdir(parents=True, exist_ok=True)
    old = folder / "results.json"
    check_replaceable("--output", old, "results", '"dgad/results/', "was not written by dgad")
    _check_page(folder)


def _check_page(folder: Path) -> None:
    """Refuse a folder that holds a page of somebody else."""
    from evaluators.report.evaluation.page import PAGE
    from evaluators.report.pages.words import MARK

    check_replaceable("--output", folder / PAGE, "results", MARK, "was not written by dgad")


def _write_pages(folders: list[Path], base: Path, *, as_json: bool) -> None:
    """Write the page of each model, and of several one that has them side by side; print where to look.

    Results are written and printed before, so that no page costs any.
    """
    from evaluators.report.evaluation.page import PAGE, write_report
    from evaluators.report.evidence import read_evidence

    def page(parts: list[Path], path: Path) -> Path:
        path.unlink(missing_ok=True)  # of older results, which must not stay beside these
        return write_report([read_evidence(folder) for folder in parts], path)

    pages = Pages(partial(print, file=sys.stderr), "the results are complete")
    wanted = [([folder], folder / PAGE) for folder in folders]
    if len(folders) > 1:
        wanted.append((folders, base / PAGE))
    for parts, path in wanted:
        written = pages.write(partial(page, parts, path), str(path))
    if written is not None and not as_json:
        print(written)
    pages.raise_bug()


def _folder(output: Path | None, predictor: "Predictor", models: int) -> Path:
    """Where the results of one of several models go."""
    if output is not None and models == 1:
        return output
    assert predictor.path is not None
    return (output or Path("attacks")) / f"{predictor.path.stem}-{predictor.sha256[:8]}"
