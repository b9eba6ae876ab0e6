"""Results as SARIF 2.1.0 (OASIS, 2020): doubts, failed gates and missing rows, for pages of code scanning.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/sarif-v2.1.0-errata01-os-complete.html
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from dgad_tk import __version__
from evaluators.report.forms.facts import headline
from evaluators.report.forms.sarif_rules import RULES, descriptor, rule_id
from evaluators.report.pages.words import plain
from evaluators.results import Results, Verdict
from evaluators.verdict.advice import ADVICE

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MARK = '"name": "dgad"'
_LEVELS: dict[Verdict, str] = {"high": "note", "warn": "warning", "unreliable": "error"}


@dataclass(frozen=True)
class Finding:
    """A result of SARIF.

    Attributes:
        rule: row of RULES.
        about: what it is about; the same in every evaluation of the model, for the fingerprint.
        text: what was found.
    """

    rule: str
    level: str
    about: str
    text: str


def sarif(results: Sequence[Results]) -> str:
    """A log with one run per result."""
    seen: Counter[str] = Counter()
    runs = []
    for each in results:
        category = f"dgad/{plain(each.model.path)}/{plain(each.threat.norm)}"
        seen[category] += 1  # pages refuse two runs of one category
        runs.append(_run(each, category + (f"/{seen[category]}" if seen[category] > 1 else "") + "/"))
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": runs}, indent=2) + "\n"


def findings(results: Results) -> Iterator[Finding]:
    """What is wrong with a model or with its evaluation; nothing where all is well."""
    rows = {row.id: row.status for row in results.attacks}
    said = set()
    for item in results.checks.items:
        missing = rows.get(item.name, "done") != "done"  # of which there is a finding anyway
        if item.verdict != "high" and not missing and (item.name, item.detail) not in said:
            said.add((item.name, item.detail))
            rule = item.name if item.name in ADVICE and item.name not in rows else "attack doubt"
            yield Finding(rule, _LEVELS[item.verdict], item.name, f"{item.name}: {item.detail}")
    for row in results.attacks:
        if row.status != "done":
            level = "warning" if row.status == "failed" else "note"
            yield Finding(f"attack {row.status}", level, row.id, f"{row.id} {row.status}: {row.reason}")
        for flag in row.flags:
            if (row.id, flag) not in said:
                yield Finding("attack doubt", "note", row.id, f"{row.id}: {flag}")
    for gate in results.gates:
        if not gate.passed:
            detail = f" ({gate.detail})" if gate.detail else ""
            text = f"gate {gate.name}: {gate.got}, required is {gate.required}{detail}"
            yield Finding("gate", "error", gate.name, text)


def _run(results: Results, category: str) -> dict[str, Any]:
    found = list(findings(results))
    driver = {
        "name": "dgad",
        "fullName": "dgad-tk",
        "version": str(results.environment.get("dgad-tk", __version__)),
        "rules": [descriptor(name) for name in RULES],
    }
    uri = location(results.model.path)
    where = {"uri": uri, "index": 0}
    artifact = {
        "location": {"uri": uri},
        "roles": ["analysisTarget"],
        "hashes": {"sha-256": results.model.sha256},
        "description": {"text": _message(f"{results.model.format} model")},
    }
    seen: Counter[tuple[str, str]] = Counter()
    return {
        "tool": {"driver": driver},
        "automationDetails": {"id": category, "description": {"text": _message(headline(results))}},
        "invocations": [_invocation(results)],
        "artifacts": [artifact],
        "results": [_result(each, where, seen) for each in found],
        "columnKind": "unicodeCodePoints",
    }


def _invocation(results: Results) -> dict[str, Any]:
    done = all(row.status != "failed" for row in results.attacks)
    found: dict[str, Any] = {"commandLine": plain(results.command), "executionSuccessful": done}
    try:
        ended = datetime.fromisoformat(results.created)
    except ValueError:  # changed by hand: the log goes without a time
        return found
    return {**found, "endTimeUtc": ended.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


def _result(finding: Finding, where: dict[str, Any], seen: Counter[tuple[str, str]]) -> dict[str, Any]:
    """A finding. Its fingerprint is the same in the next evaluation of a model at this path, whatever the figures."""
    seen[finding.rule, finding.about] += 1
    text = "\0".join((where["uri"], finding.rule, finding.about))
    fingerprint = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}:{seen[finding.rule, finding.about]}"
    return {
        "ruleId": rule_id(finding.rule),
        "ruleIndex": list(RULES).index(finding.rule),
        "level": finding.level,
        "message": {"text": _message(_advised(finding))},
        # A model has no lines, and GitHub shows nothing without one.
        "locations": [{"physicalLocation": {"artifactLocation": where, "region": {"startLine": 1}}}],
        # GitHub reads only the first of these.
        "partialFingerprints": {"primaryLocationLineHash": fingerprint, "dgad/v1": fingerprint},
    }


def _advised(finding: Finding) -> str:
    """What was found, and what to do."""
    stop = "" if finding.text.endswith((".", "!", "?")) else "."
    return f"{finding.text}{stop} {RULES[finding.rule].action}"


def _message(text: str) -> str:
    """Text that holds no placeholder and no link (SARIF 3.11.5 and 3.11.6)."""
    line = plain(text).replace("{", "{{").replace("}", "}}")
    return re.sub(r"([\\\[\]])", r"\\\1", line) if "](" in line else line


def location(path: str) -> str:
    """A path as a URI: relative ones stay relative, as pages of code scanning want them."""
    drive = re.match(r"[A-Za-z]:[\\/]", path)
    parts = path.replace("\\", "/") if drive or path.startswith("\\\\") else path
    uri = quote(parts, safe="/:" if drive else "/")
    if drive:
        return f"file:///{uri}"
    return f"file://{uri}" if uri.startswith("/") else uri
