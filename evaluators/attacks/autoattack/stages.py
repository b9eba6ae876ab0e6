"""The stages of AutoAttack for a number of classes, a norm and a size of images."""

from dataclasses import dataclass
from typing import Literal, get_args

from dgad_tk.config.threat import Norm
from evaluators.attacks.autoattack.dlr import DLR_CLASSES, TARGETED_DLR_CLASSES
from evaluators.attacks.autoattack.square.moves import TILES

Version = Literal["standard", "plus", "rand"]
VERSIONS: tuple[Version, ...] = get_args(Version)
ROBUST = -1
"""The value of `broken_by` for an image that no stage broke."""
CLOSING = "closing-fp32"
"""Name of the stage that closes a search in bf16."""
TARGETS = 9
"""Target classes of the targeted stages, or fewer where the model has fewer other classes."""


@dataclass(frozen=True)
class Stage:
    """One attack of an ensemble.

    Attributes:
        name: apgd-ce, apgd-dlr, apgd-t, fab, fab-t or square.
        restarts: of each target.
        targets: number of classes that are tried in turn; 0 for an untargeted attack.
        eot: passes that a gradient is averaged over, for models with random answers.
        exact: gradients in float32, whatever the search precision.
    """

    name: str
    restarts: int = 1
    targets: int = 0
    eot: int = 1
    exact: bool = False


def closed(stages: list[Stage], classes: int) -> list[Stage]:
    """`stages` of a search in bf16, with one in float32 on what APGD in bf16 left, after its last.

    It is APGD-T towards the likeliest other class, or APGD-CE where the targeted loss is not defined: the ascent that
    breaks most, for a twentieth of the passes of the standard ensemble's gradients. It has its place in the results, so
    that they tell how much bf16 has missed.
    """
    targets, eot = int(classes >= TARGETED_DLR_CLASSES), max(stage.eot for stage in stages)
    place = max(number for number, stage in enumerate(stages, start=1) if stage.name.startswith("apgd"))
    return [*stages[:place], Stage(CLOSING, targets=targets, eot=eot, exact=True), *stages[place:]]


def ensemble(version: Version, *, classes: int, norm: Norm, side: int) -> tuple[list[Stage], list[str]]:
    """The stages of a version, and sentences about how they differ from the published ones.

    `standard` is Croce & Hein, ICML 2020, https://arxiv.org/abs/2003.01690, section 5: APGD-CE, targeted APGD on DLR,
    targeted FAB, Square; in L1 with the restarts and targets of Croce & Hein, ICML 2021,
    https://arxiv.org/abs/2103.01208. `plus` adds untargeted DLR and FAB and has five restarts; `rand` averages
    gradients over 20 passes.

    Fewer than ten classes leave K - 1 targets. Where the targeted DLR loss is not defined, the untargeted one takes
    its place; with two classes neither is, and cross-entropy, which then orders images as every margin loss does, gets
    five restarts.

    Args:
        classes: K, at least 2.
        side: shorter side of the images in pixels.
    """
    targets = classes - 1
    few = norm == "l1"
    stages = {
        "standard": [
            Stage("apgd-ce", restarts=5 if few else 1),
            Stage("apgd-t", targets=min(5 if few else TARGETS, targets)),
            Stage("fab-t", targets=min(TARGETS, targets)),
            Stage("square"),
        ],
        "plus": [
            Stage("apgd-ce", restarts=5),
            Stage("apgd-dlr", restarts=5),
            Stage("fab", restarts=5),
            Stage("square"),
            Stage("apgd-t", targets=min(TARGETS, targets)),
            Stage("fab-t", targets=min(TARGETS, targets)),
        ],
        "rand": [Stage("apgd-ce", eot=20), Stage("apgd-dlr", eot=20)],
    }[version]
    notes: list[str] = []
    if classes <= TARGETS and any(stage.targets for stage in stages):
        notes.append(
            f"{targets} target{'s' if targets > 1 else ''} in place of {TARGETS}: the model has {classes} classes"
        )
    if classes < TARGETED_DLR_CLASSES and any(stage.name == "apgd-t" for stage in stages):
        if classes >= DLR_CLASSES:
            place = [Stage("apgd-dlr")] if version == "standard" else []
            notes.append("not the whole ensemble: targeted DLR needs 4 classes, untargeted DLR takes its place")
        else:
            place = []
        stages = [other for stage in stages for other in (place if stage.name == "apgd-t" else [stage])]
    if classes < DLR_CLASSES:
        stages = [stage for stage in stages if stage.name != "apgd-dlr"]
        stages[0] = Stage("apgd-ce", restarts=5, eot=stages[0].eot)
        notes.append("not the whole ensemble: DLR needs 3 classes, APGD-CE has five restarts in its place")
    if norm != "linf" and side < TILES:
        stages = [stage for stage in stages if stage.name != "square"]
        notes.append(f"not the whole ensemble: Square needs images of {TILES} pixels a side")
    return stages, notes
