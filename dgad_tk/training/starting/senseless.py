"""Settings that would change nothing in a run, refused before anything that takes hours."""

import torch

from dgad_tk.common import UserError
from dgad_tk.config.moments import begun_at
from dgad_tk.config.training import AUTO, TrainConfig
from dgad_tk.data.spec import Shape
from dgad_tk.methods import find_method
from dgad_tk.models import build_model
from dgad_tk.training.job import Start
from dgad_tk.training.learner import batch_norms

FROZEN_ANEW = (
    "freeze_bn without weights to start from: BatchNorm keeps a mean of 0 and a variance of 1, and normalises nothing"
)


def check_moments(config: TrainConfig) -> None:
    """See that what is to begin in a run begins before it ends.

    Raises:
        UserError: the average of the weights, or their perturbation, would begin after the last epoch.
    """
    asked = {"swa_start": config.averaging == "swa", "awp_start": config.awp_gamma > 0}
    for key, wanted in asked.items():
        if wanted and begun_at(getattr(config, key), config.epochs) >= config.epochs:
            what = "the average of averaging=swa" if key == "swa_start" else "the perturbation of awp_gamma"
            raise UserError(
                f"{key} {getattr(config, key):g}: {what} would begin after the last of {config.epochs} epochs, which "
                "are counted from 0",
                hint=f"a share of the run, --set {key}=0.75, or an epoch up to {config.epochs - 1}",
            )


def check_batch_norms(config: TrainConfig, shape: Shape, classes: int, start: Start | None) -> None:
    """See that there are BatchNorms for the settings of them.

    Args:
        start: the student's network and first weights; None if `config.student` names it.

    Raises:
        UserError: the student has none; nor has a teacher that is trained first, which takes `bn_momentum` too.
    """
    if not config.freeze_bn and config.bn_momentum is None:
        return
    with torch.random.fork_rng(devices=[]):
        if start is not None:
            student = start.build()
        else:
            student = build_model(config.student, in_channels=shape[0], classes=classes)
    if next(batch_norms(student), None) is not None:
        return
    name = config.student if config.init is None else f"the network of '{config.init}'"
    if config.freeze_bn:
        raise UserError(
            f"freeze_bn keeps the statistics of BatchNorms, and {name} has none",
            hint="leave out --freeze-bn; where BatchNorm was folded into the convolutions, it is frozen anyway",
        )
    if not (find_method(config.method).needs_teacher and config.teacher == AUTO):
        raise UserError(f"bn_momentum is of BatchNorms, and {name} has none", hint="leave out bn_momentum")
