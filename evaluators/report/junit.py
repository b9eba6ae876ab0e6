"""Results as JUnit XML, which every CI system can show: one suite per model, one case per gate and per row."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dgad_tk.common import written_aside
from evaluators.results import Attack, Results

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


def write_junit(results: Sequence[Results], path: Path) -> None:
    """Write the results of one or more models to `path`.

    Elements and attributes are those of the schema that Jenkins publishes (junit-10.xsd). A gate that did not pass is a
    failure, and so is an unreliable evaluation. A skipped row is skipped, and a row that failed is an error. No robust
    accuracy is a failure by itself, since only a gate says how much is enough.
    """
    suites = ElementTree.Element("testsuites", name="dgad")
    suites.extend([_suite(each) for each in results])
    for key in ("tests", "failures", "errors"):
        suites.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    suites.set("time", f"{sum(float(suite.get('time', '0')) for suite in suites):.3f}")
    ElementTree.indent(suites)
    with written_aside(path) as aside:
        ElementTree.ElementTree(suites).write(aside, encoding="utf-8", xml_declaration=True)


def _suite(results: Results) -> ElementTree.Element:
    model, dataset = results.model.path, results.dataset
    created = re.sub(r"(Z|[+-]\d\d:?\d\d)$", "", results.created)  # readers expect no time zone
    suite = ElementTree.Element("testsuite", name=_text(model), timestamp=created)
    properties = ElementTree.SubElement(suite, "properties")
    facts = {
        "command": results.command,
        "model.sha256": results.model.sha256,
        "dataset": f"{dataset.name} {dataset.split}, {dataset.n} images",
        "dataset.sha256": dataset.sha256,
        "norm": results.threat.norm,
        "eps": ", ".join(map(str, results.threat.eps)),
        "seed": results.seed,
        "clean_accuracy": results.clean.accuracy,
    }
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", name=name, value=_text(value))
    for gate in results.gates:
        case = _case(suite, model, "gate", gate.name)
        said = f"{gate.name}: {gate.got}, required is {gate.required}"
        if gate.passed:
            _child(case, "system-out", text="\n".join(filter(None, (said, gate.detail))))
        else:
            _child(case, "failure", said, gate.detail, type="gate")
    for row in results.attacks:
        case = _case(suite, model, "attack", row.id, row.seconds)
        if row.status == "skipped":
            _child(case, "skipped", row.reason)
        elif row.status == "failed":
            _child(case, "error", f"failed: {row.reason}", type="failed")
        else:
            _child(case, "system-out", text=_row(row))
    case = _case(suite, model, "evaluation", "believable")
    doubts = [f"{item.name}: {item.detail}" for item in results.checks.items if item.verdict != "high"]
    if results.checks.verdict == "unreliable":
        _child(case, "failure", "the evaluation is unreliable", "\n".join(doubts), type="unreliable")
    else:
        _child(case, "system-out", text="\n".join([f"believable: {results.checks.verdict}", *doubts]))
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("time", f"{sum(row.seconds for row in results.attacks):.3f}")
    return suite


def _case(suite: ElementTree.Element, model: str, kind: str, name: str, seconds: float = 0.0) -> ElementTree.Element:
    # Readers split a class name into packages at its dots, so the path must have none.
    classname = f"{kind}.{_text(model).replace('.', '_')}"
    return ElementTree.SubElement(suite, "testcase", classname=classname, name=_text(name), time=f"{seconds:.3f}")


def _child(case: ElementTree.Element, tag: str, message: str = "", text: str = "", **more: str) -> None:
    attributes = {"message": _text(message)} if message else {}
    ElementTree.SubElement(case, tag, attributes | more).text = _text(text) or None


def _row(row: Attack) -> str:
    passes = f"{row.forward_passes:,} forward and {row.backward_passes:,} backward passes"
    if row.robust_accuracy is not None and row.ci95 is not None:
        found = f"robust accuracy {row.robust_accuracy:.1%}, 95 % interval {row.ci95[0]:.1%} to {row.ci95[1]:.1%}"
    elif row.success is None:
        found = "nothing to attack"
    else:
        found = f"success {row.success:.1%}"
        found += f", median L2 {row.median_l2:.3f}" if row.median_l2 is not None else ""
    return "\n".join([f"{found}; {passes}", *row.flags])


def _text(value: Any) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(value))
