"""`dgad report`: results in the forms that people and other tools read."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.flags.demands import Baseline, Least, MaxDrop, judged
from cli.flags.values import check_replaceable
from dgad_tk.common import UserError, lookup, written_aside


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS", help="results.json of `dgad attack`, or its folder; or the folder of a training run."
        ),
    ],
    form: Annotated[
        str, typer.Option("--format", help="html, md, csv, latex, model-card, sarif or robustbench.")
    ] = "html",
    output: Annotated[
        Path | None, typer.Option(help="Write to this file. [html: report.html beside results.json; else stdout]")
    ] = None,
    least: Least = None,
    baseline: Baseline = None,
    max_drop: MaxDrop = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print which file was written, and its format, as JSON.")
    ] = False,
) -> None:
    """Show results as a page, or in the form that a paper, a pull request, a model hub or a code-scanning page takes.

    Demands are judged as by `dgad gate` and shown; the exit code does not depend on them.
    """
    from evaluators.report.forms.table import FORMS, Page

    chosen = lookup(FORMS, form, "format")
    if as_json and output is None and not isinstance(chosen, Page):
        raise UserError(
            f"--json tells which file was written, and --format {form} goes to stdout", hint="give --output"
        )
    if output is not None:
        check_replaceable(
            "--output", output, chosen.filename, chosen.mark, f"was not written by `dgad report --format {form}`"
        )
    runs = [path for path in results if _is_run(path)]
    if runs and not isinstance(chosen, Page):
        raise UserError(
            f"'{runs[0]}' is a training run, which has only a page", hint="leave out --format, or attack its export"
        )
    if runs:
        _write_runs(runs, results, output, least or baseline or max_drop, as_json=as_json)
        return
    found = judged(results, least, baseline, max_drop)
    if isinstance(chosen, Page):
        folders = [path if path.is_dir() else path.parent for path in results]
        if output is None:
            output = (folders[0] if len(folders) == 1 else Path()) / chosen.filename
            _check(output)
        chosen.write(found, results, output)
    else:
        text = chosen.text(found)
        for note in chosen.notes(found):
            print(f"note: {note}", file=sys.stderr)
        if output is None:
            _to_stdout(text)
            return
        with written_aside(output) as aside:
            aside.write_text(text, encoding="utf-8", newline="")
    _say([output], form, as_json=as_json)


def _to_stdout(text: str) -> None:
    """Write text as it stands. A text stream of Windows makes two characters of a line end, and three of CSV's."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:  # a stand-in that takes only text
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    buffer.write(text.encode("utf-8", "backslashreplace"))
    buffer.flush()


def _write_runs(runs: list[Path], results: list[Path], output: Path | None, demands: object, *, as_json: bool) -> None:
    """Draw the pages of training runs."""
    from dgad_tk.artifacts.runs import RunFolder
    from evaluators.report.training import write_run_page

    if demands:
        raise UserError(
            f"'{runs[0]}' is a training run, which no demand can be made of", hint="attack its export: dgad attack"
        )
    if others := [path for path in results if path not in runs]:
        raise UserError(
            f"'{runs[0]}' is a training run and '{others[0]}' an evaluation: they do not share a page",
            hint="name them in two commands",
        )
    if output is not None and len(runs) > 1:
        raise UserError("--output names one file, and each training run has its own", hint="leave --output out")
    folders = [RunFolder(path) for path in runs]
    for folder in folders if output is None else ():
        _check(folder.report)
    _say([write_run_page(folder, output) for folder in folders], "html", as_json=as_json)


def _check(page: Path) -> None:
    from evaluators.report.forms.table import FORMS

    check_replaceable("--output", page, "report.html", FORMS["html"].mark, "was not written by dgad")


def _say(written: list[Path], form: str, *, as_json: bool) -> None:
    if as_json:
        from cli.printing.results_table import print_json

        print_json(
            [
                {"schema": "dgad/report/1", "file": str(path), "format": form, "size_bytes": path.stat().st_size}
                for path in written
            ]
        )
    else:
        print("\n".join(map(str, written)))


def _is_run(path: Path) -> bool:
    """A folder that `dgad train` wrote."""
    return not (path / "results.json").exists() and (path / "metrics.jsonl").is_file()
