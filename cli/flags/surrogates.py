"""Surrogates, which examples are made on, siblings, which a search uses, and what is set: none may be there in vain."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.flags.models import check_classes
from cli.printing.terminal import aside
from dgad_tk.common import UserError, lookup
from dgad_tk.strangers.names import same_names

if TYPE_CHECKING:
    from dgad_tk.artifacts.predictor import Predictor
    from dgad_tk.data import Dataset
    from evaluators.plan.rows import Surrogate

SurrogateFiles = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", help="Model to make transfer examples on. Repeatable. [two that are trained on the spot]"
    ),
]
SiblingFiles = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", help="Model that autoattack-max searches on too. Repeatable. [an INT8 file's fp32 file]"
    ),
]


def check_used(
    names: list[str], surrogate: list[Path] | None, sibling: list[Path] | None, changes: Mapping[str, object]
) -> None:
    """Refuse surrogates, siblings and settings that belong to no attack that runs.

    Raises:
        UserError: one does.
    """
    from evaluators.attacks import ATTACKS
    from evaluators.plan.suites import TRANSFER

    if surrogate and not any(name.startswith(TRANSFER) for name in names):
        raise UserError("--surrogate is given, but no transfer attack", hint="--suite full or --attack transfer:pgd")
    if sibling and not any(ATTACKS[name].siblings for name in names if not name.startswith(TRANSFER)):
        raise UserError("--sibling is given, but no attack that uses one", hint="--attack autoattack-max")
    for name in changes:
        lookup(ATTACKS, name, "attack")
        if name not in {each.removeprefix(TRANSFER) for each in names}:
            raise UserError(f"--set {name}.… is given, but '{name}' does not run", hint=f"--attack {name} adds it")


@aside
def surrogates_of(files: list[Path] | None, images: "Dataset", *, quiet: bool, trust: bool) -> "list[Surrogate]":
    """The models in `files`; if there are none, two that are trained on the spot.

    Args:
        trust: open files that are programs (.pt, .pt2).

    Raises:
        UserError: one of them cannot be opened, or is for other images.
    """
    from evaluators.plan.rows import Surrogate
    from evaluators.plan.surrogates import made_on_the_spot

    if not files:
        from cli.printing.progress import TrainingProgress

        with TrainingProgress(quiet=quiet) as progress:
            return made_on_the_spot(images, on_progress=progress)
    found: list[Surrogate] = []
    for path in files:
        predictor = _opened(path, "surrogate", images, trust=trust)
        name = _name(path, predictor, {each.name for each in found})
        found.append(Surrogate(name, predictor))
    return found


def settings_of(settings: list[str]) -> dict[str, dict[str, Any]]:
    """`--set ATTACK.key=value` as what is set for each attack."""
    from dgad_tk.config.settings import parse_setting

    changes: dict[str, dict[str, Any]] = {}
    for key, value in map(parse_setting, settings):
        attack, dot, name = key.partition(".")
        if not dot:
            raise UserError(f"--set needs ATTACK.key=value, got '{key}'", hint="for example --set pgd.steps=50")
        changes.setdefault(attack, {})[name] = value
    return changes


def with_siblings(predictor: "Predictor", files: list[Path] | None, images: "Dataset", *, trust: bool) -> "Predictor":
    """The model with siblings: the models in `files`, or where none is given the float32 file of its own in its folder.

    A sentence about each joins the notes of the model.

    Args:
        trust: open files that are programs (.pt, .pt2).

    Raises:
        UserError: one of them cannot be opened, has no gradients, or is for other images.
    """
    from exporters.siblings import float32_of

    given = files or []
    found = float32_of(predictor.path, predictor.artifact) if predictor.path and not given else None
    siblings: dict[str, Predictor] = {}
    notes: list[str] = []
    for path in [*given, *([found] if found else [])]:
        other = _opened(path, "sibling", images, trust=trust)
        if other.sha256 == predictor.sha256:
            notes.append(f"sibling '{path}' is the model itself and was left out")
            continue
        if other.module is None:
            raise UserError(f"sibling '{path}' has no gradients", hint="give one that has, such as an fp32 file")
        name = _name(path, other, set(siblings))
        siblings[name] = other
        how = "found beside it, made from the same weights" if path == found else "named by --sibling"
        notes.append(f"sibling {name}: '{path}', sha256 {other.sha256[:16]}, {how}")
    return replace(predictor, siblings=siblings, notes=(*predictor.notes, *notes))


def _opened(path: Path, what: str, images: "Dataset", *, trust: bool) -> "Predictor":
    """A model of the same images and classes.

    Raises:
        UserError: it cannot be opened, or is for other images.
    """
    from evaluators.plan.reordered import reordered
    from exporters.formats import load

    predictor = load(path, images.shape, trust=trust)
    # Its own record says its order, whatever --classes says of the model that is attacked.
    other = predictor.artifact is not None and not same_names(predictor.artifact.classes, images.classes)
    turned = reordered(predictor, images.classes) if other else None
    predictor = turned or predictor
    if predictor.input_shape != images.shape or predictor.classes != len(images.classes):
        raise UserError(
            f"{what} '{path}' takes {predictor.input_shape} and gives {predictor.classes} classes, "
            f"{images.name} has {images.shape} and {len(images.classes)}",
            hint=f"a {what} must be trained for the same images",
        )
    if turned is None:
        check_classes(path, predictor, images)
    return predictor


def _name(path: Path, predictor: "Predictor", taken: set[str]) -> str:
    return path.stem if path.stem not in taken else f"{path.stem}-{predictor.sha256[:8]}"
