"""Models that transfer examples are made on."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.flags.models import check_classes
from dgad_tk.common import UserError
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
