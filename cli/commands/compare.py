"""`dgad compare`: results of several models, formats or methods on the same images."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli.flags.values import AsJson, check_replaceable
from dgad_tk.common import UserError

PAGES = (".html", ".htm")
MODELS = (".onnx", ".pt", ".pt2", ".safetensors")
"""Endings of files that `dgad attack` opens."""


def compare(
    context: typer.Context,
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS", help="results.json of `dgad attack`, or its folder. The first is the reference."
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="Also write the comparison as an HTML page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare results on the same images, each with the first: what differs, and whether chance explains it.

    Needs results.json and the samples.npz beside it. The results may be of several models, of formats of one model, or
    of one model before and after a change; they must be of the same images, attacks, norm and eps.
    """
    _check_files(results)
    if output is not None:
        if output.suffix.lower() not in PAGES:
            raise UserError(f"--output '{output}' must end in .html", hint=f"--output {output.with_suffix('.html')}")
        from evaluators.report.pages.words import MARK

        check_replaceable("--output", output, "compare.html", MARK, "is no page of dgad")

    from evaluators.verdict.comparison.compare import comparison
    from evaluators.verdict.records import read_record

    records = [read_record(path) for path in results]
    found = comparison(records, [str(path) for path in results], command=shlex.join(context.obj))
    if output is not None:
        from evaluators.report.comparison import write_comparison

        write_comparison(found, output)
    if as_json:
        from cli.printing.results_table import print_json

        print_json([found.to_dict()])
    else:
        from cli.printing.comparison import print_comparison

        print_comparison(found)
    if output is not None:
        print(output, file=sys.stderr if as_json else sys.stdout)


def _check_files(results: Sequence[Path]) -> None:
    """Refuse a single result, a result that is given twice, and models in place of results."""
    for path in results:
        model = path / "best.safetensors" if path.is_dir() and not (path / "results.json").exists() else path
        if model.is_file() and model.suffix in MODELS:
            raise UserError(
                f"'{path}' is no results of `dgad attack`",
                hint=f"`dgad attack --model {shlex.quote(str(model))}` first, and compare the folder that it prints",
            )
    if len(results) < 2:
        raise UserError(
            "one result is given, expected two or more", hint="the first is what the others are compared with"
        )
    for number, path in enumerate(results):
        if any(_place(path) == _place(other) for other in results[:number]):
            raise UserError(f"'{path}' is given twice", hint="a result differs in nothing from itself")


def _place(path: Path) -> Path:
    return (path / "results.json" if path.is_dir() else path).resolve()
