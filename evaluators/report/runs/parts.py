"""A network's own part of the page: what was trained, how far it came, what is known of it."""

import math
import statistics
from dataclasses import dataclass

from dgad_tk.answers.doubts import wilson
from dgad_tk.data.images.request import GREY
from evaluators.report.pages import words
from evaluators.report.runs import curves
from evaluators.report.runs.record import Run

BY = {"robust": "Robust accuracy", "clean": "Clean accuracy"}
"""What chooses the best epoch, as a sentence begins with it."""


@dataclass(frozen=True)
class Part:
    """The student's part, or that of the teacher that was trained for it.

    Attributes:
        title: the finding.
        state: why the run has not gone through all epochs; empty where it has.
        facts: name and value.
        accuracy: what the validation curve shows.
        note: what was measured, and how.
        loss: what the loss did.
        wrong: how often the teacher was wrong in the last epoch.
        time: of an epoch and of all.
    """

    title: str
    state: str
    facts: list[tuple[str, str]]
    accuracy: str
    note: str
    validation: curves.Curve | None
    training: curves.Curve | None
    loss: str
    losses: list[curves.Curve]
    wrong: str
    shares: list[curves.Curve]
    time: str
    pace: list[curves.Curve]
    notes: list[str]


def part_of(run: Run) -> Part:
    """What the page says of one network."""
    seconds = [value for _, value in run.series("seconds")]
    time = ""
    if seconds:
        total = run.seconds if run.seconds is not None else sum(seconds)
        epochs = words.count(len(seconds), "epoch")
        time = f"{words.duration(statistics.median(seconds))} per epoch (median of {epochs}), "
        time += f"{words.duration(total)} in all"
    return Part(
        title=_title(run),
        state=_state(run),
        facts=_facts(run, time),
        accuracy=_accuracy(run),
        note=_note(run),
        validation=curves.validation(run),
        training=curves.training(run),
        loss=_loss(run),
        losses=curves.losses(run),
        wrong=_wrong(run),
        shares=curves.shares(run),
        time=time,
        pace=curves.pace(run),
        notes=run.notes,
    )


def _title(run: Run) -> str:
    """The finding: which epoch was best, and by how much."""
    if not run.epochs:
        return "No epoch has ended yet"
    best = run.at(f"{run.config.select_on}_{run.selected_by}", run.best)
    if best is None:
        return f"{words.count(len(run.epochs), 'epoch')} done, and none was validated yet"
    right = "right under attack" if run.selected_by == "robust" else "right"
    n, images = _selection_images(run), f"{curves.SPLITS[run.config.select_on]} image"
    of = words.count(n, images) if n else f"{images}s"
    return f"{words.percent(best)} {right} in the best epoch ({run.best}), on {of}"


def _state(run: Run) -> str:
    """Whether the run has ended, and why before its time; empty for one that went through all epochs."""
    done, planned = (run.epochs[-1].number if run.epochs else 0), run.config.epochs
    if run.non_finite is not None:
        where = f"in epoch {run.non_finite.epoch}" if run.non_finite.epoch else "in a step"
        terms = ", ".join(f"{words.name(key)} {value:.4g}" for key, value in run.non_finite.terms.items())
        return (
            f"The run stopped {where}: the loss was NaN or infinite{f' ({terms})' if terms else ''}. The batch and the "
            f"weights are in {run.folder.non_finite.name}. A lower learning rate (--set lr=0.01) or a clipped "
            "gradient (--set clip_grad=1) may help."
        )
    if not run.finished:
        return (
            f"This run has not ended: {done} of {words.count(planned, 'epoch')} done. "
            "The page is written again after each epoch."
        )
    if done < planned:
        config, reasons = run.config, []
        if config.early_stop is not None:
            reasons.append(f"no better epoch within {config.early_stop} (early_stop)")
        if config.max_seconds is not None:
            reasons.append(f"its time of {words.duration(config.max_seconds)} was up (max_seconds)")
        return f"The run ended after {done} of {planned} epochs" + (f": {' or '.join(reasons)}." if reasons else ".")
    return ""


def _accuracy(run: Run) -> str:
    """What became of the accuracy after the best epoch."""
    series = run.series(f"{run.config.select_on}_{run.selected_by}")
    points = [point for point in series if math.isfinite(point[1])]
    best, name = run.at(f"{run.config.select_on}_{run.selected_by}", run.best), BY[run.selected_by]
    if best is None or not points:
        return "Accuracy"
    number, last = points[-1]
    if number == run.best:
        return "The last epoch was the best" if run.finished else "The last epoch so far is the best"
    if last > best - 5e-4:  # what one decimal does not show
        return f"{name} stayed at its best to epoch {number:.0f}: {words.percent(best)}"
    return f"{name} fell from {words.percent(best)} in epoch {run.best} to {words.percent(last)} in epoch {number:.0f}"


def _note(run: Run) -> str:
    """What is measured after an epoch, and on what."""
    config, threat, n = run.config, run.config.attack, _selection_images(run)
    images = f"{f'{n:,} ' if n else ''}{curves.SPLITS[config.select_on]} images"
    often = "each epoch" if config.select_every == 1 else f"every {config.select_every} epochs"
    return (
        f"Measured after {often} on {images}: clean, and under PGD of {words.count(threat.steps, 'step')} where "
        f"{words.allowance(threat.norm, threat.eps)}. A dashed line marks the epoch whose weights are kept."
    )


def _loss(run: Run) -> str:
    """What the loss did."""
    values = [value for _, value in run.series("loss") if math.isfinite(value)]
    return f"The loss went from {values[0]:.3g} to {values[-1]:.3g}" if len(values) > 1 else "The loss and its terms"


def _wrong(run: Run) -> str:
    """How often the teacher was wrong in the last epoch."""
    shares = [value for _, value in run.series("teacher_wrong") if math.isfinite(value)]
    return f"The teacher is wrong on {words.percent(shares[-1])} of the training images" if shares else "Shares"


def _selection_images(run: Run) -> int | None:
    count = run.artifact.training.get("selection_images") if run.artifact else None
    return count if type(count) is int and count > 0 else None


def _images(run: Run) -> str:
    """The dataset; of an image folder also what its pictures became."""
    config = run.config
    parts = [config.dataset + (f" at {config.image_size}" if config.image_size is not None else "")]
    parts += [config.resize] if config.resize else []
    parts += ["grey"] if config.channels == GREY else []
    return ", ".join(parts + ([f"the first {config.limit_train:,}"] if config.limit_train else []))


def _facts(run: Run, time: str) -> list[tuple[str, str]]:
    """What was trained, and what came of it."""
    config, record, threat = run.config, run.artifact, run.config.attack
    found = [
        ("Network", f"{config.student} by {config.method}"),
        ("Images", _images(run)),
        ("Threat", f"{threat.norm.capitalize()} {words.eps_text(threat.eps)}, {words.count(threat.steps, 'step')}"),
    ]
    if record is not None and record.teacher:
        model, _, digest = record.teacher.rpartition(" ")
        found.append(("Teacher", f"{model} (SHA-256 {digest[:8]}...)"))
    n = _selection_images(run)
    for key in ("clean", "robust"):
        value = run.at(f"{config.select_on}_{key}", run.best)
        if value is not None:
            text = words.percent(value)
            if n:
                of = words.count(n, f"{curves.SPLITS[config.select_on]} image")
                text += f" ({words.interval(wilson(round(value * n), n))}) of {of}"
            found.append((f"{BY[key]}, best epoch", text))
    found.append(("Epochs", f"{len(run.epochs)} of {config.epochs}"))
    return [*found, ("Time", time)] if time else found
