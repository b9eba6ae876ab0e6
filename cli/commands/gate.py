"""`dgad gate`: what is demanded of results, and the exit code."""

from pathlib import Path
from typing import Annotated

import typer

from cli.flags.demands import Baseline, Least, MaxDrop, judged
from cli.flags.values import AsJson, check_replaceable
from cli.printing.results_table import print_gates
from dgad_tk.common import GateError, UserError


def gate(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS", help="results.json of `dgad attack`, or its folder.")
    ],
    least: Least = None,
    baseline: Baseline = None,
    max_drop: MaxDrop = None,
    junit: Annotated[Path | None, typer.Option(help="Write the outcome as JUnit XML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare results with thresholds and an earlier run.

    The exit code is 1 if one of them is not met. Thresholds need results.json alone; a comparison with a baseline also
    needs the samples.npz beside both.
    """
    if not (least or baseline or max_drop or junit):
        raise UserError("nothing is demanded", hint="--min worst-case=45%, or --baseline old/results.json")
    if junit is not None:
        check_replaceable("--junit", junit, "junit.xml", "<testsuite", "is no JUnit XML")

    from cli.printing.results_table import print_json

    found = judged(results, least, baseline, max_drop)
    if as_json:
        print_json([each.to_dict() for each in found])
    else:
        print_gates(found)
    if junit is not None:
        from evaluators.report.junit import write_junit

        write_junit(found, junit)
    said = [(each.model.path, gate) for each in found for gate in each.gates]
    failed = [(model, gate) for model, gate in said if not gate.passed]
    if failed:
        model, first = failed[0]
        others = f"; so did {len(failed) - 1} of the other {len(said) - 1}" if len(failed) > 1 else ""
        raise GateError(f"{model} failed the gate {first.name}: {first.got}, required is {first.required}{others}")
