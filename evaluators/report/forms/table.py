"""The forms of `dgad report`, as a table. Text is written anywhere; a page is drawn into a file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluators.report.forms import csv_rows, latex, markdown, model_card, robustbench, sarif
from evaluators.report.pages.words import MARK
from evaluators.results import Results


def _no_notes(results: Sequence[Results]) -> list[str]:
    return []


@dataclass(frozen=True)
class Form:
    """What all forms have.

    Attributes:
        filename: what such a file is usually called.
        description: one line.
        mark: what its files have within the first 1,000 characters, and others have not.
    """

    filename: str
    description: str
    mark: str


@dataclass(frozen=True)
class Text(Form):
    """A form that is text.

    Attributes:
        text: the results as this form; UserError if they do not fit it.
        notes: what the reader should know that is not in the text.
    """

    text: Callable[[Sequence[Results]], str]
    notes: Callable[[Sequence[Results]], list[str]] = _no_notes


@dataclass(frozen=True)
class Page(Form):
    """A form that is drawn from the files of evaluations.

    Attributes:
        write: draws the results, which were read from these paths, into a file.
    """

    write: Callable[[Sequence[Results], Sequence[Path], Path], None]


def _page(results: Sequence[Results], folders: Sequence[Path], path: Path) -> None:
    from evaluators.report.evaluation.page import write_report  # numpy, which text does without
    from evaluators.report.evidence import read_evidence

    write_report([replace(read_evidence(at), results=each) for each, at in zip(results, folders, strict=True)], path)


FORMS: dict[str, Text | Page] = {
    "html": Page("report.html", "page with charts and images, one file", MARK, _page),
    "md": Text("report.md", "Markdown for a pull request", markdown.MARK, markdown.markdown),
    "csv": Text("results.csv", "the rows of all results", csv_rows.MARK, csv_rows.csv_rows),
    "latex": Text("report.tex", "table with intervals, for booktabs", latex.MARK, latex.latex),
    "model-card": Text(
        "README.md",
        "Hugging Face model card with a model-index",
        model_card.MARK,
        model_card.model_card,
        model_card.card_notes,
    ),
    "sarif": Text("dgad.sarif", "doubts and failed gates, for pages of code scanning", sarif.MARK, sarif.sarif),
    "robustbench": Text(
        "model_info.json",
        "RobustBench's model_info of one model",
        robustbench.MARK,
        robustbench.robustbench,
        robustbench.robustbench_notes,
    ),
}
