"""Models that transfer examples are made on, and what is set for attacks; neither may be there for nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.flags.models import check_classes
from dgad_tk.common import UserError, lookup
from dgad_tk.strangers.names import same_names

if TYPE_CHECKING:
    from dgad_tk.data import Dataset
    from evaluators.plan.rows import Surrogate


def surrogates_of(files: list[Path] | None, images: "Dataset", *, quiet: bool, trust: bool) -> "list[Surrogate]":
    """The models in `files`; if there are none, two that are trained on the spot.

    Args:
        trust: open files that are programs (.pt, .pt2).

    Raises:
        UserError: one of them cannot be opened, or is for other images.
    """
    from evaluators.plan.reordered import reordered
    from evaluators.plan.rows import Surrogate
    from evaluators.plan.surrogates import made_on_the_spot
    from exporters.formats import load

    if not files:
        from cli.printing.progress import TrainingProgress

        with TrainingProgress(quiet=quiet) as progress:
            return made_on_the_spot(images, on_progress=progress)
    found: list[Surrogate] = []
    for path in files:
        predictor = load(path, images.shape, trust=trust)
        # Its own record says its order, whatever --classes says of the model that is attacked.
        other = predictor.artifact is not None and not same_names(predictor.artifact.classes, images.classes)
        turned = reordered(predictor, images.classes) if other else None
        predictor = turned or predictor
        if predictor.input_shape != images.shape or predictor.classes != len(images.classes):
            raise UserError(
                f"surrogate '{path}' takes {predictor.input_shape} and gives {predictor.classes} classes, "
                f"{images.name} has {images.shape} and {len(images.classes)}",
                hint="a surrogate must be trained for the same images",
            )
        if turned is None:
            check_classes(path, predictor, images)
        taken = {each.name for each in found}
        name = path.stem if path.stem not in taken else f"{path.stem}-{predictor.sha256[:8]}"
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


def check_used(names: list[str], surrogate: list[Path] | None, changes: Mapping[str, object]) -> None:
    """Refuse surrogates and settings that belong to no attack that runs."""
    from evaluators.attacks import ATTACKS
    from evaluators.plan.suites import TRANSFER

    if surrogate and not any(name.startswith(TRANSFER) for name in names):
        raise UserError("--surrogate is given, but no transfer attack", hint="--suite full or --attack transfer:pgd")
    for name in changes:
        lookup(ATTACKS, name, "attack")
        if name not in {each.removeprefix(TRANSFER) for each in names}:
            raise UserError(f"--set {name}.… is given, but '{name}' does not run", hint=f"--attack {name} adds it")
