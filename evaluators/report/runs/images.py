"""Training images of a run beside what the attack made of them."""

from dataclasses import dataclass, field

import numpy as np

from evaluators.report.pages import words
from evaluators.report.pages.pictures import Picture, change, picture
from evaluators.report.pages.words import name
from evaluators.report.runs.record import Run


@dataclass(frozen=True)
class Figure:
    """One image of the gallery: as the network saw it, the change, the result."""

    id: str
    text: str
    detail: str
    images: list[Picture] = field(repr=False)


def gallery(run: Run, id: str = "image") -> list[Figure]:
    """The images of images.npz; empty where there are none.

    Args:
        id: what their places on the page are called, with a number behind.
    """
    examples = run.examples
    if examples is None:
        return []
    threat, found = run.config.attack, []
    for at in range(len(examples.label)):
        label, clean = _class(run, int(examples.label[at])), examples.clean[at]
        images = [picture(clean, alt=f"training image of {label}, as the network saw it", caption="as trained on")]
        if examples.adversarial is not None:
            adversarial = examples.adversarial[at]
            full = threat.eps if threat.norm == "linf" else float(np.abs(adversarial - clean).max())
            images.append(change(clean, adversarial, full, alt="what the attack added, amplified", caption="change"))
            images.append(picture(adversarial, alt=f"the same image of {label} after the attack", caption="attacked"))
        answers = (("as it is", examples.clean_pred), ("after the attack", examples.adv_pred))
        said = [f"{_class(run, int(each[at]))} {when}" for when, each in answers if each is not None]
        found.append(Figure(f"{id}-{at + 1}", label, f"answered {', '.join(said)}" if said else "", images))
    return found


def heading(run: Run) -> str:
    """How many of the images were answered rightly."""
    examples = run.examples
    if examples is None:
        return ""
    n = len(examples.label)
    right = [
        f"{int((predicted == examples.label).sum())} of {n} right {where}"
        for predicted, where in ((examples.clean_pred, "as they are"), (examples.adv_pred, "after the attack"))
        if predicted is not None
    ]
    return f"Training images: {', '.join(right)}" if right else "Training images"


def note(run: Run) -> str:
    """Which images these are, and how to read them."""
    if run.examples is None:
        return ""
    text = (
        f"From the last step of epoch {run.examples.epoch + 1}, as the network saw them: shifted and mirrored as the "
        "dataset allows. The answers are the student's in that step."
    )
    if run.examples.adversarial is None:
        return text + f" The method {name(run.config.method)} attacks no images."
    threat = run.config.attack
    full = words.eps_text(threat.eps) if threat.norm == "linf" else "the largest change of the image"
    return text + f" In the middle is what the inner maximisation added: a full colour is {full}."


def _class(run: Run, label: int) -> str:
    """The name of a class, or its number before the run has a record of the names."""
    classes = run.artifact.classes if run.artifact else []
    return name(classes[label]) if 0 <= label < len(classes) else f"class {label}"
