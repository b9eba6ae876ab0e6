"""`--fail-under`, `--baseline`, `--max-drop` and `--junit` of `dgad attack`: what is demanded, and the exit code."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgad_tk.common import GateError, UserError
from dgad_tk.number_text import NotANumberError, exact

if TYPE_CHECKING:
    from dgad_tk.data import Split
    from evaluators import Evaluation, Row
    from evaluators.baseline import Recorded

RATES = "write 45% or 0.45"


@dataclass(frozen=True)
class Demands:
    """What the flags ask of every model that is attacked.

    Attributes:
        least: row or share to the least that passes, a fraction of all images.
        baseline: results of an earlier evaluation.
        max_drop: how far below it a share may fall; None for as far as chance explains.
        junit: where to write the outcome as JUnit XML.
    """

    least: dict[str, Fraction]
    baseline: Path | None = None
    max_drop: Fraction | None = None
    junit: Path | None = None


def demands_of(fail_under: Sequence[str], baseline: Path | None, max_drop: str | None, junit: Path | None) -> Demands:
    """The flags, read and looked at without anything heavy.

    Raises:
        UserError: one of them cannot be read, or they contradict each other.
    """
    least: dict[str, Fraction] = {}
    for given in fail_under:
        key, equals, rate = given.rpartition("=")
        if not (key and equals):
            raise UserError(f"--fail-under needs KEY=RATE, got '{given}'", hint="for example --fail-under pgd=45%")
        if key in least:
            raise UserError(f"--fail-under is given twice for '{key}'", hint="give each key once")
        least[key] = rate_of(rate, f"--fail-under {key}")
    if max_drop is not None and baseline is None:
        raise UserError("--max-drop is given, but no --baseline to drop from", hint="--baseline old/results.json")
    if baseline is not None and not baseline.exists():
        raise UserError(f"--baseline: no such file: '{baseline}'", hint="name the results.json of an earlier run")
    if junit is not None:
        _check_junit(junit)
    return Demands(least, baseline, rate_of(max_drop, "--max-drop") if max_drop is not None else None, junit)


def rate_of(text: str, flag: str) -> Fraction:
    """`45%` or `0.45` as an exact fraction of 1.

    Raises:
        UserError: no rate, or a bare number that may be meant as per cent.
    """
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})\s*(%?)\s*", text, re.ASCII)
    if found is None:
        raise UserError(f"{flag} must be a rate such as 45% or 0.45, got '{text}'", hint=RATES)
    number, sign = found.groups()
    try:
        rate = exact(number) / (100 if sign else 1)
    except NotANumberError as error:  # of a zero in front
        raise UserError(f"{flag} must be a rate such as 45% or 0.45, got '{text}'", hint=error.hint) from None
    if not sign and (rate > 1 or number == "1"):
        raise UserError(f"{flag} must be a rate such as 45% or 0.45, got '{text}'", hint=f"did you mean {number}%?")
    if rate > 1:
        raise UserError(f"{flag} must be at most 100%, got '{text}'", hint=RATES)
    return rate


def _check_junit(path: Path) -> None:
    """Make its folder, before hours of work for it.

    Raises:
        UserError: it is a folder, or a file that is no JUnit XML.
    """
    if path.is_dir():
        raise UserError(f"--junit '{path}' is a folder", hint=f"name a file, such as {path}/junit.xml")
    if path.exists() and "<testsuite" not in path.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise UserError(f"--junit '{path}' exists and is no JUnit XML", hint="choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)


def check_demands(
    demands: Demands, rows: "Sequence[Row]", dataset: str, split: str, images: "Split"
) -> "Recorded | None":
    """See that the demands can be judged by the evaluation to come; the baseline, where there is one.

    Raises:
        UserError: an unknown key, or a baseline of something else.
    """
    from evaluators.baseline import check_comparable, read
    from evaluators.gate import check_keys

    check_keys(demands.least, rows)
    if demands.baseline is None:
        return None
    old = read(demands.baseline)
    check_comparable(old, rows, dataset, split, images)
    return old


def judge_demands(
    demands: Demands, old: "Recorded | None", evaluation: "Evaluation", document: dict[str, Any]
) -> list[dict[str, Any]]:
    """What became of the demands, for `gates` of the results."""
    from evaluators.baseline import compare, recorded
    from evaluators.gate import thresholds
    from evaluators.report import samples

    rows = [outcome.row for outcome in evaluation.outcomes]
    found = thresholds(demands.least, rows, document)
    if old is not None:
        found += compare(recorded(document, samples(evaluation)), old, demands.max_drop)
    return [asdict(result) for result in found]


def unanswered(old: "Recorded | None", evaluation: "Evaluation", document: dict[str, Any]) -> list[str]:
    """Ids of the rows that the baseline, where there is one, has no answer to, for `uncompared` of the results."""
    from evaluators.baseline import recorded, uncompared
    from evaluators.report import samples

    return [] if old is None else uncompared(recorded(document, samples(evaluation)), old)


def print_gates(documents: Sequence[dict[str, Any]]) -> None:
    """A line for each demand on each model."""
    for document in documents:
        where = f"{document['model']['path']}: " if len(documents) > 1 else ""
        for gate in document["gates"]:
            verdict = "passed" if gate["passed"] else "FAILED"
            print(f"{where}gate {gate['name']} {verdict}: {gate['got']}, required is {gate['required']}")
            if gate["detail"]:
                print(f"  {gate['detail']}")
        if unknown := document.get("uncompared"):
            print(f"{where}not compared, since the baseline has no answer: {', '.join(unknown)}")


def conclude(demands: Demands, documents: Sequence[dict[str, Any]]) -> None:
    """Write JUnit XML where it is wanted, and end with exit code 1 where a gate failed. To be called last.

    Raises:
        GateError: a gate failed.
    """
    if demands.junit is not None:
        from evaluators.report.junit import write_junit

        write_junit(documents, demands.junit)
    gates = [(document["model"]["path"], gate) for document in documents for gate in document["gates"]]
    failed = [(model, gate) for model, gate in gates if not gate["passed"]]
    if failed:
        model, first = failed[0]
        others = f"; so did {len(failed) - 1} of the other {len(gates) - 1}" if len(failed) > 1 else ""
        raise GateError(
            f"{model} failed the gate {first['name']}: {first['got']}, required is {first['required']}{others}"
        )
