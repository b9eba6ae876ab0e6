"""Results as JUnit XML, which every CI system can show: a suite for each model, a case for each gate and each row."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dgad_tk.common import written_aside

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write, not even escaped."""


def write_junit(documents: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the results of one or more models, schema `dgad/results/1`, to `path`.

    The elements and attributes are those of the schema that Jenkins publishes (junit-10.xsd). A gate that was not
    passed is a failure, and so is an evaluation that is not to be believed; a skipped row is skipped; one that was cut
    short is an error. A row of the evaluation itself cannot fail: what is too little, only a gate can say.
    """
    suites = ElementTree.Element("testsuites", name="dgad attack")
    for document in documents:
        suites.append(_suite(document))
    for key in ("tests", "failures", "errors"):
        suites.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    suites.set("time", f"{sum(float(suite.get('time', '0')) for suite in suites):.3f}")
    ElementTree.indent(suites)
    with written_aside(path) as aside:
        ElementTree.ElementTree(suites).write(aside, encoding="utf-8", xml_declaration=True)


def _suite(document: Mapping[str, Any]) -> ElementTree.Element:
    model = document["model"]["path"]
    created = re.sub(r"(Z|[+-]\d\d:?\d\d)$", "", document["created"])  # readers want it without a time zone
    suite = ElementTree.Element("testsuite", name=_text(model), timestamp=created)
    properties = ElementTree.SubElement(suite, "properties")
    dataset, threat = document["dataset"], document["threat"]
    facts = {
        "command": document["command"],
        "model.sha256": document["model"]["sha256"],
        "dataset": f"{dataset['name']} {dataset['split']}, {dataset['n']} images",
        "dataset.sha256": dataset["sha256"],
        "norm": threat["norm"],
        "eps": ", ".join(map(str, threat["eps"])),
        "seed": document["seed"],
        "clean_accuracy": document["clean"]["accuracy"],
    }
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", name=name, value=_text(value))
    for gate in document.get("gates", []):
        case = _case(suite, model, "gate", gate["name"])
        said = f"{gate['name']}: {gate['got']}, required is {gate['required']}"
        if not gate["passed"]:
            _child(case, "failure", said, gate["detail"], type="gate")
        else:
            _child(case, "system-out", text="\n".join(filter(None, (said, gate["detail"]))))
    for entry in document["attacks"]:
        case = _case(suite, model, "attack", entry["id"], entry["seconds"])
        if entry["status"] == "skipped":
            _child(case, "skipped", entry["reason"])
        elif entry["status"] != "done":
            _child(case, "error", f"{entry['status']}: {entry['reason']}", type=entry["status"])
        else:
            _child(case, "system-out", text=_row(entry))
    checks = document["checks"]
    case = _case(suite, model, "evaluation", "believable")
    doubts = [f"{item['name']}: {item['detail']}" for item in checks["items"] if item["verdict"] != "high"]
    if checks["verdict"] == "unreliable":
        _child(case, "failure", "the evaluation is unreliable", "\n".join(doubts), type="unreliable")
    else:
        _child(case, "system-out", text="\n".join([f"believable: {checks['verdict']}", *doubts]))
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("time", f"{sum(entry['seconds'] for entry in document['attacks']):.3f}")
    return suite


def _case(suite: ElementTree.Element, model: str, kind: str, name: str, seconds: float = 0.0) -> ElementTree.Element:
    # Readers split a class name at its dots into packages: a path has its own.
    classname = f"{kind}.{_text(model).replace('.', '_')}"
    return ElementTree.SubElement(suite, "testcase", classname=classname, name=_text(name), time=f"{seconds:.3f}")


def _child(case: ElementTree.Element, tag: str, message: str = "", text: str = "", **more: str) -> None:
    attributes = {"message": _text(message)} if message else {}
    ElementTree.SubElement(case, tag, attributes | more).text = _text(text) or None


def _row(entry: Mapping[str, Any]) -> str:
    passes = f"{entry['forward_passes']:,} forward and {entry['backward_passes']:,} backward passes"
    if entry["robust_accuracy"] is not None:
        low, high = entry["ci95"]
        found = f"robust accuracy {entry['robust_accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%}"
    elif entry["success"] is None:
        found = "nothing to attack"
    else:
        found = f"success {entry['success']:.1%}"
        found += f", median L2 {entry['median_l2']:.3f}" if entry["median_l2"] is not None else ""
    return "\n".join([f"{found}; {passes}", *entry["flags"]])


def _text(value: Any) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(value))
