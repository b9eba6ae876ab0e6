"""report.html of a training run: curves, what differs from the defaults, training images, the paper beside it."""

from dataclasses import dataclass
from pathlib import Path

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.config.recipe import known_figures, printed_place
from evaluators.report.pages import words
from evaluators.report.pages.render import write_page
from evaluators.report.runs import defaults, images
from evaluators.report.runs.curves import SPLITS
from evaluators.report.runs.parts import part_of
from evaluators.report.runs.record import Run, read_run


@dataclass(frozen=True)
class Printed:
    """A figure of the paper, and what this run measured under the same name."""

    figure: str
    paper: str
    here: str


def write_run_page(folder: RunFolder, path: Path | None = None) -> Path:
    """Write the page of a run, finished or not; its path.

    Args:
        folder: of `dgad train`.
        path: where to; the default is `report.html` in the run folder.

    Raises:
        UserError: it is no run folder, or its config.yaml cannot be read.
        OSError: the page cannot be written.
    """
    run = read_run(folder)
    student, teacher = part_of(run), part_of(run.teacher) if run.teacher else None
    settings, figures, printed = defaults.differences(run.config), images.gallery(run), _printed(run)
    sections = [
        ("accuracy", "Accuracy", student.validation),
        ("losses", "Loss", student.losses),
        ("shares", "Teacher's errors", student.shares),
        ("pace", "Time and learning rate", student.pace),
        ("images", "Training images", figures),
        ("paper", "The paper", printed),
        ("settings", "Settings", True),
        ("teacher", "The teacher's run", teacher),
        ("versions", "Versions and limits", True),
    ]
    return write_page(
        path or folder.report,
        "run.html",
        contents=[(key, text) for key, text, there in sections if there],
        name=folder.path.resolve().name,
        failed=run.non_finite is not None,
        student=student,
        teacher=teacher,
        teacher_figures=images.gallery(run.teacher, "teacher-image") if run.teacher else [],
        teacher_images=images.heading(run.teacher) if run.teacher else "",
        settings=settings,
        settings_title=_settings_title(run, len(settings)),
        command=defaults.command(run.config, settings),
        figures=figures,
        images_title=images.heading(run),
        images_note=images.note(run),
        printed=printed,
        paper=_paper(run),
        versions=_versions(run),
        limits=_limits(run),
    )


def _settings_title(run: Run, differ: int) -> str:
    of = f"the defaults of {run.config.method} on {run.config.dataset}"
    if not differ:
        return f"All settings are {of}"
    return f"{words.count(differ, 'setting')} {'differ' if differ > 1 else 'differs'} from {of}"


def _printed(run: Run) -> list[Printed]:
    """The paper's figures, and those of the best epoch that have the same name."""
    config, on = run.config, run.config.select_on
    ours = {
        "clean": (run.at(f"{on}_clean", run.best), f"on {SPLITS[on]} images"),
        "PGD": (run.at(f"{on}_robust", run.best), f"{config.attack.steps} steps, on {SPLITS[on]} images"),
    }
    found = []
    for label, figure in known_figures(config.paper).items():
        value, how = ours.get(label, (None, ""))
        here = f"{words.percent(value)} ({how})" if value is not None else "not measured in training"
        found.append(Printed(label, f"{figure:.2f} %", here))
    return found


def _paper(run: Run) -> list[tuple[str, str]]:
    """Where the paper's figures stand."""
    paper = run.config.paper
    found = [("Recipe", paper.get("recipe")), ("Row", paper.get("row")), ("Measured on", printed_place(paper))]
    found += [("Source", paper.get("source")), ("Reading", paper.get("reading"))]
    return [(label, words.name(value)) for label, value in found if value]


def _versions(run: Run) -> list[tuple[str, str]]:
    """What the best weights were made with."""
    if run.artifact is None:
        return []
    found = [(words.name(key), words.name(value)) for key, value in run.artifact.versions.items()]
    for key, label in (("processes", "processes"), ("dataset_sha256", "images, SHA-256")):
        if said := run.artifact.training.get(key):
            found.append((label, words.name(said)))
    return found


def _limits(run: Run) -> list[str]:
    """What the figures do not promise."""
    chosen = (
        "The best epoch was chosen on the test images, as the papers do, so these are not held-out figures."
        if run.config.select_on == "test"
        else "The best epoch was chosen by its accuracy on these validation images, so that accuracy is a little too "
        "high."
    )
    steps = words.count(run.config.attack.steps, "step")
    return [
        chosen,
        f"Robust accuracy is that under one attack, PGD of {steps} on the float32 network; stronger ones break more.",
        "What counts is the exported file: dgad export writes it, dgad attack measures it on the test images.",
    ]
