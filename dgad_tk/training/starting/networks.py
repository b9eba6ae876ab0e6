"""Whether the networks of a run can be built and take its images, asked before anything that takes hours."""

import copy
import hashlib
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dgad_tk.common import UserError
from dgad_tk.config.training import AUTO, TrainConfig
from dgad_tk.data import DATASETS
from dgad_tk.data.images.request import request_of
from dgad_tk.data.sources.imagefolder import class_names
from dgad_tk.data.spec import Shape
from dgad_tk.methods import find_method
from dgad_tk.models import build_model, check_input, find_model
from dgad_tk.models.own import HANDED, Own
from dgad_tk.models.trial import check_rebuilt
from dgad_tk.training.job import Start


def find_networks(config: TrainConfig, *, drawn: bool) -> None:
    """See that the names of the networks that a run draws are known, and that a user's own can be imported.

    An image folder is asked for its classes, so that an own network is tried before its pictures are decoded.

    Args:
        drawn: the student is built by its name.

    Raises:
        UserError: one is unknown, cannot be imported, or does not take the images.
    """
    own = [isinstance(find_model(name), Own) for name in _named(config, drawn)]
    spec = DATASETS.get(config.dataset)
    if any(own) and spec is not None and spec.image_size and config.data_dir is not None:
        size = spec.image_size if config.image_size is None else config.image_size
        asked = request_of(size, config.resize, config.channels, None)
        names = class_names(config.data_dir.expanduser(), None)
        check_networks(config, (asked.channels, *asked.size), len(names), drawn=drawn)


def check_networks(config: TrainConfig, shape: Shape, classes: int, *, drawn: bool) -> None:
    """See that networks which are not ours take images of this shape: of other libraries, and a user's own.

    Raises:
        UserError: one does not.
    """
    for name in _named(config, drawn):
        own = isinstance(find_model(name), Own)
        if own or ":" in name:  # all rows of MODELS take any
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                build = partial(build_model, name, in_channels=shape[0], classes=classes)
                network = build()
                check_input(network, name, shape, classes, own=own)
                if own:
                    check_rebuilt(build, network, name, shape)


def handed(module: nn.Module) -> Start:
    """A student that was handed over as a module; it is copied, with the weights that it has.

    Raises:
        UserError: it cannot be copied, or has no weights to train.
    """
    name = handed_name(module)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(f"the student {name} has no weights to train", hint="set requires_grad on its parameters")
    # Not by the weights' hash: a run that is resumed has better ones, and the same script may draw others.
    return Start(build=lambda: copy.deepcopy(module).train(), sha256="", network={"name": name})


def handed_name(module: nn.Module) -> str:
    """What configs and records call a module that was handed over."""
    return f"{HANDED}:{type(module).__name__}"


def frozen(module: nn.Module) -> tuple[nn.Module, str]:
    """A teacher that was handed over: a frozen copy in eval mode, and its name with the SHA-256 of its weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return copy.deepcopy(module).eval().requires_grad_(False), f"{handed_name(module)} {digest.hexdigest()}"


def check_places(config: TrainConfig, out: Path, *, needs_teacher: bool) -> None:
    """See that the teacher and the first weights of a resumed run still lie where its config says.

    Raises:
        UserError: one does not.
    """
    if config.init is not None and not config.init.exists():
        raise UserError(
            f"the weights that the run in '{out}' began with are not at '{config.init}' any more: no such file",
            hint="say where they are now: --init",
        )
    if (
        not needs_teacher
        or config.teacher == AUTO
        or config.teacher.startswith(f"{HANDED}:")
        or Path(config.teacher).exists()
    ):
        return
    raise UserError(
        f"the teacher of the run in '{out}' is not at '{config.teacher}' any more: no such file or run folder",
        hint="say where it is now: --teacher",
    )


def _named(config: TrainConfig, drawn: bool) -> list[str]:
    """Names of the networks that this run builds."""
    names = [config.student] if drawn else []
    if find_method(config.method).needs_teacher and config.teacher == AUTO:
        names.append(config.teacher_model)
    return names
