"""Several evaluations on one page: formats, models or methods side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from evaluators.report.evaluation.attacks import Bar, Cell, Heat, share_broken
from evaluators.report.evaluation.headline import headline, main_case, weakest_class
from evaluators.report.evidence import Evidence
from evaluators.report.pages.words import eps_text, interval, listed, percent, size
from evaluators.results import Results


@dataclass(frozen=True)
class Beside:
    """One evaluation in the table: its number on the page, and its figures as text."""

    number: int
    path: str
    format: str
    size: str
    images: str
    clean: str
    robust: str
    weakest: str
    verdict: str
    failed: list[str]


@dataclass(frozen=True)
class Overview:
    """Several evaluations side by side.

    Attributes:
        title: the finding, as the page's heading.
        clean, robust: bars, one per evaluation.
        doubted: one of them is not fully believed, so that the title must not boast.
        reasons: why, each with its file.
        same: every evaluation asked the same question about the same images.
        survival: share of the images that withstand in the row's evaluation and withstand in the column's too; None
            where the questions differ or the outcomes are not at hand.
        left: images that withstand in all of them, in a sentence.
        transfer: share of each one's right images that examples of a surrogate broke; a table per attack.
    """

    title: str
    note: str
    clean: list[Bar]
    robust: list[Bar]
    rows: list[Beside]
    same: bool
    doubted: bool
    reasons: list[str]
    survival: Heat | None
    left: str
    transfer: list[Heat]


def overview(evidence: Sequence[Evidence]) -> Overview:
    """The evaluations side by side, and whether they may be compared."""
    every = [each.results for each in evidence]
    cases = [main_case(each) for each in every]
    questions = {
        (each.dataset.sha256, each.dataset.n, case and (case.norm, case.eps), _rows(each))
        for each, case in zip(every, cases, strict=True)
    }
    same = len(questions) == 1 and None not in cases
    reasons = [f"{each.results.model.path}: {said}" for each in evidence for said in headline(each).reasons]
    doubted = any(each.checks.verdict != "high" for each in every)
    title = f"{len(every)} evaluations side by side"
    if same:
        shares = [case.robust_accuracy for case in cases if case]
        low, high = (f"{100 * share:.1f} %" for share in (min(shares), max(shares)))
        share = low if low == high else f"{low} to {high}"
        title = f"{len(every)} models: {f'at most {share}' if doubted else f'{share} still'} right under attack."
    note = "All of them answered the same attacks on the same images." if same else _difference(every)
    survival, left = _survival(evidence) if same else (None, "")
    return Overview(
        title=title,
        note=note,
        clean=[Bar(each.model.path, each.clean.accuracy) for each in every],
        robust=[
            Bar(each.model.path, case.robust_accuracy, case.ci95)
            for each, case in zip(every, cases, strict=True)
            if case
        ],
        rows=[_beside(number, each) for number, each in enumerate(every, start=1)],
        same=same,
        doubted=doubted,
        reasons=reasons,
        survival=survival,
        left=left,
        transfer=_transfer(every) if same else [],
    )


def _transfer(every: Sequence[Results]) -> list[Heat]:
    """Surrogates down, evaluations across; one table per attack and radius."""
    found = [{row.id: row for row in each.attacks} for each in every]
    rows = [row for row in every[0].attacks if row.source == "transfer" and row.eps is not None]
    files = [each.model.path for each in every]
    tables = []
    for name, eps in dict.fromkeys((row.name, row.eps) for row in rows):
        same = [row for row in rows if (row.name, row.eps) == (name, eps)]
        lines = [(str(row.surrogate), [share_broken(each.get(row.id)) for each in found]) for row in same]
        tables.append(Heat(f"{name} at {eps_text(eps)}, made on", files, lines))
    return tables


def _rows(results: Results) -> tuple[str, ...]:
    """What was asked: rows, their settings, and how many images each saw."""
    rows = [row for row in results.attacks if row.eps is not None and row.status == "done"]
    return tuple(sorted(json.dumps([row.id, row.n, row.params], sort_keys=True, default=str) for row in rows))


def _difference(every: Sequence[Results]) -> str:
    """Why they must not be compared figure by figure."""
    first, found = every[0], []
    for other in every[1:]:
        if other.dataset.sha256 != first.dataset.sha256:
            found.append("they saw other images")
        if other.threat != first.threat:
            found.append("the attacks were allowed other changes")
        if _rows(other) != _rows(first):
            found.append("other attacks ran, or with other settings, or on fewer images")
    why = listed(list(dict.fromkeys(found))) or "they differ in what was asked"
    return f"Do not compare the figures one by one: {why}."


def _beside(number: int, results: Results) -> Beside:
    case = main_case(results)
    worst = weakest_class(case)
    robust = f"{percent(case.robust_accuracy)} ({interval(case.ci95)}) at {eps_text(case.eps)}" if case else "not known"
    return Beside(
        number=number,
        path=results.model.path,
        format=results.model.computes_in or results.model.format,
        size="" if results.model.size is None else size(results.model.size),
        images=f"{results.dataset.n:,} of {results.dataset.name}",
        clean=percent(results.clean.accuracy),
        robust=robust,
        weakest=f"{worst.class_}: {percent(worst.right / worst.n)}" if worst else "several",
        verdict=results.checks.verdict,
        failed=[gate.name for gate in results.gates if not gate.passed],
    )


def _survival(evidence: Sequence[Evidence]) -> tuple[Heat | None, str]:
    """Of the images that withstand in one, how many withstand in the others."""
    held = []
    for each in evidence:
        rows = [row for row in each.done if row.eps is not None and row.n == each.results.dataset.n]
        case = main_case(each.results)
        if each.samples is None or case is None:
            return None, ""
        kept = each.samples.clean_pred == each.samples.label
        for row in rows:
            if row.eps is not None and row.eps <= case.eps:
                kept = kept & (each.samples.rows[row.id]["robust"].astype(bool) | (row.robust is None))
        held.append(kept)
    names = [each.results.model.path for each in evidence]
    lines = []
    for name, one in zip(names, held, strict=True):
        shares = [float(other[one].mean()) for other in held] if one.any() else []
        lines.append((name, [Cell(percent(share), share) for share in shares] or [Cell("none", None)] * len(held)))
    both = held[0].copy()
    for each in held[1:]:
        both &= each
    text = f"{int(both.sum()):,} of {len(both):,} images ({percent(float(both.mean()))}) withstand in all of them."
    return Heat("of those that withstand in", names, lines), text
