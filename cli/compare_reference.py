"""`dgad compare-reference`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cli.flags import NORMS, radii_of, whole
from cli.models import default_eps, open_model
from dgad_tk import number_text
from dgad_tk.common import UserError, format_fraction, lookup

if TYPE_CHECKING:
    from evaluators.agreement import Agreement

SHOWN = 12
"""Indices of differing images that are printed; all of them are in the file."""


def compare_reference(
    model: Annotated[Path, typer.Option(help=".onnx, .pt (TorchScript), .pt2 or .safetensors.")],
    dataset: Annotated[str | None, typer.Option(help="[the one the model was trained on]")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the images. [as in training]")] = None,
    image_size: Annotated[int | None, whole("--image-size", "Resize an image folder to this. [as in training]")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    limit: Annotated[int, whole("--limit", "The first N images of a fixed stratified order.", least=1)] = 500,
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    eps: Annotated[str | None, typer.Option(help="Radius. [what the model was trained for]")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    batch_size: Annotated[int | None, whole("--batch-size", "Images at a time. [as `dgad attack`]", least=1)] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for agreement.json. [attacks/MODEL-SHA]")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print agreement.json instead of a table.")] = False,
) -> None:
    """Run our AutoAttack and its authors' package on the same images and compare them one by one.

    The package, pyautoattack, is the extra `reference`. What is finished is kept: the same command goes on.
    """
    lookup(NORMS, norm, "norm")
    lookup({"train": 0, "val": 0, "test": 0}, split, "split")
    radii = radii_of(eps, norm)
    if radii is not None and len(radii) > 1:
        raise UserError(f"--eps must be one radius here, got '{eps}'", hint="run the command once for each")
    chosen = _seeds(seeds)
    if not model.exists():
        raise UserError(f"no such file: '{model}'", hint="`dgad export` writes student.onnx into the current folder")

    from cli.progress import AttackProgress
    from dgad_tk.common import written_aside
    from evaluators import evaluate, plan
    from evaluators.agreement import OURS, THEIRS, agreement, together
    from evaluators.evaluate import default_batch_size

    predictor, images = open_model(model, dataset, data_dir, image_size)
    if not quiet:
        for note in predictor.notes:
            print(f"note: {model}: {note}", file=sys.stderr)
    part = images.splits[split].subset(limit)
    radius = radii[0] if radii else default_eps(predictor.artifact, images, norm)
    rows = plan([THEIRS, OURS], norm=cast(Any, norm), eps=[radius])
    folder = output or Path("attacks") / f"{model.stem}-{predictor.sha256[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    batch_size = batch_size or default_batch_size(predictor.input_shape)
    found: list[Agreement] = []
    for seed in chosen:
        if not quiet:
            print(f"seed {seed}: {len(part)} {split} images of {images.name}, batches of {batch_size}", file=sys.stderr)
        with AttackProgress(quiet=quiet) as progress:
            evaluation = evaluate(
                predictor,
                part,
                rows,
                classes=images.classes,
                seed=seed,
                batch_size=batch_size,
                store=folder / "units",
                on_progress=progress,
            )
        found.append(agreement(evaluation))
    overall = together(found)
    document = {
        "schema": "dgad/agreement/1",
        "model": {"path": str(model), "sha256": predictor.sha256, "runtime": predictor.runtime},
        "dataset": {"name": images.name, "split": split, "n": len(part)},
        "threat": {"norm": norm, "eps": radius},
        "batch_size": batch_size,
        "seeds": [each.to_dict() for each in found],
        "together": overall,
    }
    with written_aside(folder / "agreement.json") as aside:
        aside.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(document))
        return
    _print(found, overall, f"{norm} {format_fraction(radius)}")
    print(f"{folder}/agreement.json")


def _seeds(text: str) -> list[int]:
    try:
        seeds, hint = [number_text.whole(part) for part in text.split(",")], ""
    except number_text.NotANumberError as error:
        seeds, hint = [], error.hint
    if not seeds or not all(0 <= seed < 2**32 for seed in seeds) or len(set(seeds)) < len(seeds):
        hint = hint or "for example --seeds 0,1,2"
        raise UserError(f"--seeds must be different whole numbers, got '{text}'", hint=hint)
    return seeds


def _print(found: "list[Agreement]", together: dict[str, float], threat: str) -> None:
    from cli.table import plain_table

    rows: list[list[str]] = []
    for each in found:
        rows.append([str(each.seed), "clean", str(each.right), str(each.right), "", ""])
        rows += [["", f"after {name}", str(ours), str(theirs), "", ""] for name, ours, theirs in each.after]
        seconds = [f"{value:.1f}" for value in each.seconds]
        rows.append(["", "seconds", *seconds, f"{each.seconds[1] / max(each.seconds[0], 1e-9):.2f}x", ""])
        disagree = f"{len(each.only_ours)} / {len(each.only_theirs)}"
        rows.append(["", "broken by only one", "", "", disagree, f"{each.compared.p:.3f}"])
    print(f"images robust at {threat}, of {found[0].n}")
    plain_table(["seed", "stage", "ours", "authors'", "ours / theirs", "McNemar p"], rows, left=2)
    for each in found:
        for who, indices in (("ours", each.only_ours), ("the authors'", each.only_theirs)):
            if indices:
                more = f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
                print(f"seed {each.seed}: only {who} broke {', '.join(map(str, indices[:SHOWN]))}{more}")
    print(f"all seeds: ours minus theirs {together['difference']:+.2%} of the images, McNemar p {together['p']:.3f}")
