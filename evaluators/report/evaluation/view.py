"""One evaluation, made ready for its template."""

from dataclasses import dataclass
from typing import Any

from evaluators.report.evaluation import attacks, images, measured
from evaluators.report.evaluation.classes import Classes, Taken, by_class, taken_for
from evaluators.report.evaluation.curves import Curved, curves
from evaluators.report.evaluation.headline import Checked, Headline, checked, headline
from evaluators.report.evaluation.trained import Trained, trained
from evaluators.report.evidence import Evidence
from evaluators.report.pages.charts import Chart
from evaluators.results import Attack, Gate, Results


@dataclass(frozen=True)
class View:
    """What the page shows of one evaluation.

    Attributes:
        prefix: of the ids of its sections, so that several evaluations share a page.
        title: what it is called on a page of several.
        limits: what the figures do not promise.
    """

    prefix: str
    title: str
    results: Results
    head: Headline
    facts: list[tuple[str, str]]
    gates: list[Gate]
    radii: list[attacks.Radius]
    unlimited: list[tuple[Attack, str]]
    missing: list[Attack]
    stages: list[attacks.Stages]
    curve: Chart | None
    curves: list[Curved]
    classes: Classes | None
    taken: Taken | None
    gallery: list[images.Group]
    distances: list[images.Distances]
    sureness: images.Sureness | None
    transfer: list[attacks.Heat]
    printed: list[attacks.Printed]
    paper: dict[str, Any]
    checks: list[Checked]
    trained: Trained
    explained: list[measured.Explained]
    measured: list[tuple[str, str]]
    limits: list[str]
    arrays_missing: bool

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Sections that have something to show: id and title."""
        every = (
            ("gates", "Gates", self.gates),
            ("attacks", "Under attack", self.radii or self.unlimited or self.missing),
            ("stages", "Stage by stage", self.stages),
            ("eps", "Against eps", self.curve or self.curves),
            ("paper", "Beside the paper", self.printed),
            ("classes", "Class by class", self.classes),
            ("images", "How little it takes", self.gallery),
            ("distance", "How far, how sure", self.distances or self.sureness),
            ("transfer", "Transfer", self.transfer),
            ("training", "How it was trained", self.trained.facts),
            ("checks", "Can it be believed?", self.checks),
            ("measured", "How it was measured", True),
            ("limits", "What it does not say", True),
        )
        return [(f"{self.prefix}{id}", title) for id, title, shown in every if shown]


def view(evidence: Evidence, *, prefix: str = "", title: str = "") -> View:
    """Everything that the page shows of an evaluation."""
    results = evidence.results
    return View(
        prefix=prefix,
        title=title or results.model.path,
        results=results,
        head=headline(evidence),
        facts=measured.identity(results),
        gates=results.gates,
        radii=attacks.radii(results),
        unlimited=attacks.unlimited(evidence),
        missing=attacks.without_result(results)[: attacks.MOST_ROWS],
        stages=attacks.stages(results),
        curve=attacks.against_eps(results),
        curves=curves(results),
        classes=by_class(results),
        taken=taken_for(evidence),
        gallery=images.gallery(evidence, prefix),
        distances=images.distances(evidence),
        sureness=images.sureness(evidence),
        transfer=attacks.transfer(results),
        printed=attacks.printed(evidence),
        paper=attacks.paper_of(results),
        checks=checked(results),
        trained=trained(results),
        explained=measured.explained(results),
        measured=measured.measured(results),
        limits=list(measured.limits(results)),
        arrays_missing=evidence.samples is None,
    )
