"""Teachers that are model files: ONNX, TorchScript and whatever else `exporters` opens."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dgad_tk.common import UserError

if TYPE_CHECKING:
    from torch import nn

    from dgad_tk.config.training import TrainConfig
    from dgad_tk.data import Dataset


def model_file_teacher(config: "TrainConfig", *, trust: bool) -> "Callable[[Dataset], tuple[nn.Module, str]] | None":
    """What opens the teacher of a run whose config names a model file, for `dgad_tk.training.train.train`.

    None if the method has no teacher, if the teacher is trained first, or if it is weights, which `dgad_tk` reads.

    Args:
        config: resolved.
        trust: open a file that is a program (.pt, .pt2).
    """
    from dgad_tk.config.training import AUTO
    from dgad_tk.methods import find_method

    path = Path(config.teacher)
    if config.teacher == AUTO or not find_method(config.method).needs_teacher or not _is_model_file(path):
        return None
    return partial(_open, config, path, trust)


def _open(config: "TrainConfig", path: Path, trust: bool, dataset: "Dataset") -> "tuple[nn.Module, str]":
    """The teacher in a model file, in eval mode, frozen, with its name and SHA-256."""
    from torch import nn

    from dgad_tk.models import Normalize, check_input
    from dgad_tk.teachers.normalisation import check_given
    from dgad_tk.teachers.opening import check_record
    from exporters.formats import load

    predictor = load(path, dataset.shape, trust=trust)
    record = predictor.artifact
    module = predictor.network if predictor.network is not None else predictor.module
    if module is None:
        raise UserError(
            f"'{path}' has no gradients, and a teacher is attacked through", hint="give its weights or an ONNX file"
        )
    if record is not None:
        check_record(record, dataset, given=config.teacher_mean + config.teacher_std)
    if predictor.input_shape != dataset.shape:
        raise UserError(
            f"'{path}' takes images of shape {predictor.input_shape}, '{dataset.name}' has {dataset.shape}",
            hint="a model file takes the images it was made for; its weights may take others",
        )
    check_given(config.teacher_mean, config.teacher_std, dataset.shape[0])
    name = record.model if record is not None else path.stem.replace(" ", "-")
    # The layout of `build_model`, which the check of a teacher expects; a bare TorchScript module lacks methods.
    normalize = Normalize(config.teacher_mean, config.teacher_std) if config.teacher_mean else nn.Identity()
    teacher = nn.Sequential(OrderedDict(normalize=normalize, net=module.cpu())).eval().requires_grad_(False)
    check_input(teacher, f"the teacher {name}", dataset.shape, len(dataset.classes))
    return teacher, f"{name} {predictor.sha256}"


def _is_model_file(path: Path) -> bool:
    """Whether `exporters` opens it. A .pt with code in it is TorchScript, and else a checkpoint of weights."""
    from dgad_tk.artifacts.weight_files import is_torchscript
    from exporters.formats import LOADERS

    if not path.is_file() or path.suffix == ".safetensors" or path.suffix not in LOADERS:
        return False
    return path.suffix != ".pt" or is_torchscript(path)
