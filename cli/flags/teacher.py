"""Teachers that are model files: ONNX, TorchScript and whatever else `exporters` opens; and how they are asked."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgad_tk.common import UserError

if TYPE_CHECKING:
    from torch import nn

    from dgad_tk.config.training import TrainConfig
    from dgad_tk.data import Dataset


def with_option(options: object, name: str, value: str) -> dict[str, Any]:
    """`method_options` of a config with one option set, however it was called before: `name` or `METHOD.name`."""
    held = options if isinstance(options, dict) else {}
    return {key: each for key, each in held.items() if key.rpartition(".")[2] != name} | {name: value}


def model_file_teacher(config: "TrainConfig", *, trust: bool) -> "Callable[[Dataset], tuple[nn.Module, str]] | None":
    """What opens the teacher of a run whose config names a model file, for `dgad_tk.training.train.train`.

    None if the method has no teacher, if the teacher is trained first, or if it is weights, which `dgad_tk` reads.

    Args:
        config: resolved.
        trust: open a file that is a program (.pt, .pt2).
    """
    from dgad_tk.config.training import AUTO
    from dgad_tk.methods import find_method

    path = _weights(Path(config.teacher))
    if config.teacher == AUTO or not find_method(config.method).needs_teacher or not _is_model_file(path):
        return None
    return partial(_open, config, path, trust)


def fitted_to_files(config: "TrainConfig", *, trust: bool) -> "tuple[TrainConfig, list[str]]":
    """A config whose image folder is read in the shape that its first weights take, and then its teacher; and notes.

    What somebody said of the folder stays as it is.

    Args:
        config: resolved.
        trust: open a file that is a program (.pt, .pt2).

    Raises:
        UserError: one of them cannot be opened, or takes no images of a folder.
    """
    from dgad_tk.config.training import AUTO
    from dgad_tk.methods import find_method

    notes: list[str] = []
    if config.init is not None:
        config, notes = _fitted(config, config.init, "first network", trust=trust)
    if config.teacher != AUTO and find_method(config.method).needs_teacher:
        config, more = _fitted(config, Path(config.teacher), "teacher", trust=trust)
        notes += more
    return config, notes


def _fitted(config: "TrainConfig", path: Path, what: str, *, trust: bool) -> "tuple[TrainConfig, list[str]]":
    """A config whose image folder is read in the shape that a file takes, where nobody said another; and notes."""
    from cli.flags.fitting import open_file
    from cli.flags.images import ImageFlags
    from dgad_tk.data import DATASETS
    from dgad_tk.data.images.request import GREY
    from dgad_tk.data.images.size import shown, written
    from dgad_tk.teachers.opening import channels_of

    asked, given = config.channels is None or config.image_size is None, path.exists()
    path = _weights(path)
    usual = DATASETS[config.dataset].image_size if config.dataset in DATASETS else 0
    if not (given and asked and usual):
        return config, []
    found, notes = config, []
    if _is_model_file(path):
        flags = ImageFlags(config.dataset, image_size=config.image_size)
        try:
            shape = open_file(path, flags, trust=trust).predictor.input_shape
        except UserError:
            if config.image_size is not None:
                raise
            shape = open_file(path, replace(flags, image_size=usual), trust=trust).predictor.input_shape  # it was open
        if config.image_size is None and written(shape[1:]) != usual:
            found = found.model_copy(update={"image_size": written(shape[1:])})
            notes.append(f"the image folder is read at {shown(shape[1:])} (height x width), as the {what}'s file says")
        channels: int | None = shape[0]
    else:
        channels = channels_of(path)
    if config.channels is None and channels == GREY:
        found = found.model_copy(update={"channels": channels})
        notes.append(f"the image folder is read as one channel (grey), since the {what} takes one")
    return found, notes


def _weights(path: Path) -> Path:
    """The weights of a run folder, or the file itself; a path that leads nowhere stays for others to refuse."""
    from dgad_tk.artifacts.runs import RunFolder

    return RunFolder(path).best if path.is_dir() else path


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
    from exporters.onnx_student.weights import has_graph

    if not path.is_file() or path.suffix not in LOADERS:
        return False
    if path.suffix == ".safetensors":
        return has_graph(path)
    return path.suffix != ".pt" or is_torchscript(path)
