"""The weights that a student starts from, out of a run folder or out of a checkpoint of any project."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.runs import weights_of
from dgad_tk.artifacts.weights import GRAPH, has_record, read_weights
from dgad_tk.common import UserError, sha256_file
from dgad_tk.config.training import TrainConfig, without_places
from dgad_tk.data import Dataset
from dgad_tk.models import Normalize, check_input, normalised
from dgad_tk.models.records import trusted_source
from dgad_tk.teachers.foreign import SUFFIXES, StateDict, read_state_dicts
from dgad_tk.teachers.matching import Wanted, match_network
from dgad_tk.teachers.normalisation import FIRST
from dgad_tk.teachers.opening import check_teacher
from dgad_tk.teachers.recognition import recognised
from dgad_tk.training.job import Start

_AS = "weights to start from"


def named_by_its_weights(config: TrainConfig, *, trust: bool) -> TrainConfig:
    """The config with the network of its first weights as its student, where nobody has named one.

    Args:
        trust: run the source code that the record of a user's own network names.

    Raises:
        UserError: the file cannot be read, or does not tell its network.
    """
    if config.init is None or "student" in config.model_fields_set:
        return config
    path = _weights(config.init)
    if has_record(path):
        tensors, record = read_weights(path)
        _refuse_graph(path, GRAPH in tensors)
        name = trusted_source(record.model, record.network, path, trust=trust)
    else:
        readings = (recognised(each.tensors) for each in read_state_dicts(path, _AS))
        name = next((each.model for each in readings if each is not None), "")
        if not name:
            raise UserError(
                f"'{path}': its tensors are of no network known here",
                hint="name it: --student torchvision:NAME, timm:NAME or path/to/file.py:build",
            )
    return config.model_copy(update={"student": name})


def start_from(config: TrainConfig, dataset: Dataset, say: Callable[[str], None]) -> Start:
    """The student of `config`, with the weights that `config.init` holds.

    A head for another number of classes is left out, and drawn anew under the run's seed.

    Args:
        say: gets what a user should know, line by line.

    Raises:
        UserError: the file cannot be read, holds another network, or is for other images.
    """
    assert config.init is not None
    path = _weights(config.init)
    given = config.init_mean or (), config.init_std or ()
    record: Artifact | None = None
    if has_record(path):
        tensors, record = read_weights(path)
        _refuse_graph(path, GRAPH in tensors)
        given = _of_record(config, record, dataset, path)
        own = {name.removeprefix("net."): tensor for name, tensor in tensors.items() if name.startswith("net.")}
        states = [StateDict(path, (), own)]
    else:
        states = read_state_dicts(path, _AS)
    wanted = Wanted(config.student, dataset.shape[0], len(dataset.classes), *given, role=FIRST, any_head=True)
    heads: list[str] = []

    def build(told: Callable[[str], None] = lambda line: None) -> nn.Module:
        return match_network(states, wanted, told)[0]

    def tell(line: str) -> None:
        say(f"note: {line}")
        if "start anew" in line:
            heads.append(line)

    with torch.random.fork_rng(devices=[]):
        network = build(tell)
    if record is not None and not heads and record.classes != dataset.classes:
        say(f"note: '{path}' was trained for other classes ({', '.join(record.classes[:5])}, ...): its head is kept")
    normalize = network.get_submodule("normalize")
    mean, std = (_values(normalize.mean), _values(normalize.std)) if isinstance(normalize, Normalize) else ((), ())
    refuse_twice(config, mean)
    digest = sha256_file(path)
    return Start(
        build=lambda: build().get_submodule("net").train(),
        sha256=digest,
        mean=mean,
        std=std,
        said={"init": path.name, "init_sha256": digest},
        knows=not heads,
    )


def try_first(
    start: Start, config: TrainConfig, dataset: Dataset, device: torch.device, say: Callable[[str], None]
) -> None:
    """See that the student takes the images, and say how many it gets right before it is trained, and what to doubt.

    Raises:
        UserError: it does not take them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = normalised(start.build(), start.mean, start.std)
        check_input(network, config.student, dataset.shape, len(dataset.classes), own=True)
    if not start.knows:
        return
    name = config.student if config.init is None else config.init.name
    check = check_teacher(network, dataset, device=device, name=name, role=FIRST)
    for line in (check.describe(), *(f"warning: {doubt}" for doubt in check.warnings)):
        say(line)


def refuse_twice(config: TrainConfig, mean: tuple[float, ...]) -> None:
    """Raise UserError where both the first weights and the config say how images are normalised."""
    if mean and config.normalize == "dataset":
        raise UserError(
            f"'{config.init}' has a normalisation of its own, and normalize=dataset asks for another",
            hint="leave out normalize: the student goes on with that of its weights",
        )


def _weights(source: Path) -> Path:
    """The file of weights that a run folder or a file is."""
    path = weights_of(source)
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"cannot read '{path}' as {_AS}: expected {' or '.join((*SUFFIXES, '.onnx'))}",
            hint="a run folder or best.safetensors of `dgad train`, a PyTorch checkpoint, or an ONNX file",
        )
    return path


def _refuse_graph(path: Path, found: bool) -> None:
    if found:
        raise UserError(
            f"'{path}' is a network that was made from an ONNX graph",
            hint="`dgad train --init` opens it; here it needs start=",
        )


def _of_record(
    config: TrainConfig, record: Artifact, dataset: Dataset, path: Path
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a record that fits the config and the images."""
    if config.init_mean:
        raise UserError(
            f"'{path}' says itself how it normalises its images", hint="leave out --init-mean and --init-std"
        )
    theirs, ours = (without_places({"student": name})["student"] for name in (record.model, config.student))
    if theirs != ours:
        raise UserError(
            f"'{path}' holds a {record.model}, not a {config.student}",
            hint=f"--student {record.model}, or leave it out",
        )
    if record.input_shape[0] != dataset.shape[0]:
        raise UserError(
            f"'{path}' takes {record.input_shape[0]} channels, '{dataset.name}' has {dataset.shape[0]}",
            hint=FIRST.other,
        )
    return tuple(record.normalize.get("mean", ())), tuple(record.normalize.get("std", ()))


def _values(tensor: torch.Tensor) -> tuple[float, ...]:
    """As they were before they became float32."""
    return tuple(float(f"{value:.7g}") for value in tensor.flatten().tolist())
