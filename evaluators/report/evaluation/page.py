"""report.html: the page of one evaluation, or of several side by side."""

from collections.abc import Sequence
from pathlib import Path

from evaluators.report.evaluation.several import overview
from evaluators.report.evaluation.view import view
from evaluators.report.evidence import Evidence
from evaluators.report.pages.render import write_page

PAGE = "report.html"


def write_report(evidence: Sequence[Evidence], path: Path) -> Path:
    """Write the report of one evaluation, or of several side by side, to `path`; the path.

    Raises:
        ValueError: no evaluation.
    """
    if not evidence:
        raise ValueError("expected at least one evaluation")
    if len(evidence) == 1:
        one = view(evidence[0])
        return write_page(path, "evaluation.html", contents=one.contents, view=one)
    views = [view(each, prefix=f"m{number}-") for number, each in enumerate(evidence, start=1)]
    whole = overview(evidence)
    contents = [("side", "Side by side"), *((f"{each.prefix}top", each.title) for each in views)]
    return write_page(path, "evaluations.html", contents=contents, views=views, whole=whole)
