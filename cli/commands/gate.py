"""`dgad gate`: what is demanded of results, and the exit code."""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from cli.flags.values import AsJson, check_replaceable
from cli.printing.gates import print_gates
from dgad_tk.common import GateError, UserError
from dgad_tk.strangers.number_text import NotANumberError, exact


def gate(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS", help="results.json of `dgad attack`, or its folder.")
    ],
    least: Annotated[
        list[str] | None,
        typer.Option(
            "--min",
            metavar="KEY=RATE",
            help="The least that passes, for clean, worst-case or an attack: pgd=45%. Repeatable.",
        ),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Results of an earlier run, below which robustness must not drop.")
    ] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="Drop below the baseline that is allowed: 1%. [what chance explains]")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the outcome as JUnit XML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare results with thresholds and an earlier run.

    The exit code is 1 if one of them is not met. Thresholds need results.json alone; a comparison with a baseline also
    needs the samples.npz beside both.
    """
    shares = _shares(least or [])
    if max_drop is not None and baseline is None:
        raise UserError("--max-drop is given, but no --baseline to drop from", hint="--baseline old/results.json")
    drop = rate_of(max_drop, "--max-drop") if max_drop is not None else None
    if not (shares or baseline or junit):
        raise UserError("nothing is demanded", hint="--min worst-case=45%, or --baseline old/results.json")
    if junit is not None:
        check_replaceable("--junit", junit, "junit.xml", "<testsuite", "is no JUnit XML")

    from cli.printing.results_table import print_json
    from evaluators.results import read_results
    from evaluators.verdict.gate import thresholds

    judged = [read_results(path) for path in results]
    judged = [each.model_copy(update={"gates": thresholds(shares, each)}) for each in judged]
    if baseline is not None:
        from evaluators.verdict.baseline import compare, uncompared  # numpy, which `--min` can do without
        from evaluators.verdict.records import read_record

        old = read_record(baseline)
        for number, (each, path) in enumerate(zip(judged, results, strict=True)):
            new = read_record(path)
            gates = [*each.gates, *compare(new, old, drop)]
            judged[number] = each.model_copy(update={"gates": gates, "uncompared": uncompared(new, old)})
    if as_json:
        print_json([each.to_dict() for each in judged])
    else:
        print_gates(judged)
    if junit is not None:
        from evaluators.report.junit import write_junit

        write_junit(judged, junit)
    said = [(each.model.path, gate) for each in judged for gate in each.gates]
    failed = [(model, gate) for model, gate in said if not gate.passed]
    if failed:
        model, first = failed[0]
        others = f"; so did {len(failed) - 1} of the other {len(said) - 1}" if len(failed) > 1 else ""
        raise GateError(f"{model} failed the gate {first.name}: {first.got}, required is {first.required}{others}")


def _shares(given: Sequence[str]) -> dict[str, Fraction]:
    """`KEY=RATE` of each `--min`: row or share to the least that passes, a fraction of all images."""
    shares: dict[str, Fraction] = {}
    for each in given:
        key, equals, rate = each.rpartition("=")
        if not (key and equals):
            raise UserError(f"--min needs KEY=RATE, got '{each}'", hint="for example --min pgd=45%")
        if key in shares:
            raise UserError(f"--min is given twice for '{key}'", hint="give each key once")
        shares[key] = rate_of(rate, f"--min {key}")
    return shares


def rate_of(text: str, flag: str) -> Fraction:
    """`45%` or `0.45` as an exact fraction of 1.

    Raises:
        UserError: no rate, or a bare number that may be meant as per cent.
    """
    wrong, hint = f"{flag} must be a rate such as 45% or 0.45, got '{text}'", "write 45% or 0.45"
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})\s*(%?)\s*", text, re.ASCII)
    if found is None:
        raise UserError(wrong, hint=hint)
    number, sign = found.groups()
    try:
        rate = exact(number) / (100 if sign else 1)
    except NotANumberError as error:  # of a zero in front
        raise UserError(wrong, hint=error.hint) from None
    if not sign and (rate > 1 or number == "1"):
        raise UserError(wrong, hint=f"did you mean {number}%?")
    if rate > 1:
        raise UserError(f"{flag} must be at most 100%, got '{text}'", hint=hint)
    return rate
