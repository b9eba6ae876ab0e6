"""Weights of other projects brought into a network: which one it is, whether they fit, how it normalises."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from dgad_tk.common import UserError
from dgad_tk.foreign import Checkpoint, StateDict, same
from dgad_tk.models import build_model, find_model
from dgad_tk.normalisation import check_given, choose_normalisation, own_normalisation
from dgad_tk.recognition import ends_of, layout_of, recognised
from dgad_tk.wrappers import Reading, counts_batches, normaliser_role, odd_kind, read_as, summary

_NOT_READ = (
    "if only training reads it, save the state dict without it; a normalisation has to be given instead, as "
    "--teacher-mean and --teacher-std"
)


def match_network(
    checkpoint: Checkpoint,
    model: str,
    *,
    in_channels: int,
    classes: int,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    on_message: Callable[[str], None] = lambda line: None,
) -> tuple[nn.Module, str]:
    """The network that a checkpoint holds, in eval mode on the CPU, and its name.

    It is found under any prefix that all its names share. Of several state dicts the first by rank that is such a
    network counts.

    Args:
        model: what `build_model` takes; empty to tell it from names and shapes, which works for rows of MODELS and for
            families.
        mean, std: of images in [0, 1], applied inside the network unless the file brings its own.
        on_message: told what else the file holds, a line at a time.

    Raises:
        UserError: it is another network, or several, or one for other images or classes; or mean and std do not fit.
    """
    path = checkpoint.path
    check_given(mean, std, in_channels)
    if model:
        find_model(model)  # a misspelt name, before anything is said about the file
    readings = [(each, _read(each.tensors, model, in_channels, classes)) for each in checkpoint.state_dicts]
    usable = [(each, found) for each, found in readings if found is not None and _is_whole(found, model)]
    if not usable:
        _refuse_all(checkpoint, readings, model, in_channels=in_channels, classes=classes)
    chosen, reading = usable[0]
    tensors = chosen.tensors
    beside = _beside(checkpoint, chosen, in_channels)
    inside = {name: tensors[name] for name in reading.normaliser}
    roles = {name: normaliser_role(name, tensor) for name, tensor in (beside | inside).items()}
    own = own_normalisation(path, beside | inside, roles, in_channels, given=bool(mean))
    mean, std = choose_normalisation(path, own, (mean, std))
    teacher = build_model(reading.model, in_channels=in_channels, classes=classes, mean=mean, std=std)
    net = teacher.get_submodule("net")
    _refuse_misfit(checkpoint, chosen, reading, net, model, in_channels=in_channels, classes=classes)
    _refuse_others(checkpoint, usable, on_message)
    # In the network's own types: some have no isfinite, and what float64 holds float32 may not.
    types = {name: tensor.dtype for name, tensor in net.state_dict().items()}
    state = {name: each.to(types[name]) for name, each in _bare(tensors, reading.prefixes[0], types).items()}
    if broken := [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]:
        raise UserError(f"'{path}': {broken[0]} is not finite", hint="its training broke down; take another checkpoint")
    net.load_state_dict(state, strict=False)  # of what strict would refuse, only missing batch counts are left
    if beside:
        on_message(f"'{path}' holds {' and '.join(beside)} beside its network: its images are normalised by them")
    if said := [name for name in reading.aside if not counts_batches(name) and "sub_block1" not in name]:
        on_message(f"'{path}' also holds {summary(said)}: no part of the {reading.model}, left aside")
    return teacher.eval(), reading.model


def _beside(checkpoint: Checkpoint, chosen: StateDict, channels: int) -> dict[str, Tensor]:
    """A mean and std that a file keeps outside its network's state dict, in what holds that or under a telling key.

    Anything else can be a statistic of something else, of accuracies over seeds, say.
    """
    found: dict[str, Tensor] = {}
    for other in checkpoint.state_dicts:
        around = other is not chosen and chosen.keys[: len(other.keys)] == other.keys
        if not around and not (other.keys and re.search("norm|preproc|transform", other.keys[-1], re.IGNORECASE)):
            continue
        roles = {name: normaliser_role(name, tensor) for name, tensor in other.tensors.items()}
        fitting = [name for name, role in roles.items() if role and other.tensors[name].numel() == channels]
        if channels > 1 or len({roles[name] for name in fitting}) > 1:
            found |= {".".join((*other.keys, name)): other.tensors[name] for name in fitting}
    return found


def _read(tensors: Mapping[str, Tensor], model: str, in_channels: int, classes: int) -> Reading | None:
    """A state dict as the network that it holds, else as the named one, as far as it goes; None without either."""
    found = recognised(tensors)
    if not model or (found is not None and (found.model == model or not found.unexpected)):
        return found
    with torch.device("meta"):
        net = find_model(model)(in_channels, classes)
    return read_as(tensors, model, net.state_dict())


def _is_whole(reading: Reading, model: str) -> bool:
    return reading.complete and not reading.unexpected and reading.model == (model or reading.model)


def _refuse_all(
    checkpoint: Checkpoint,
    readings: Sequence[tuple[StateDict, Reading | None]],
    model: str,
    *,
    in_channels: int,
    classes: int,
) -> NoReturn:
    """Say what the largest state dict of a file holds, where none is the network that is wanted."""
    path = checkpoint.path
    chosen, reading = max(readings, key=lambda each: len(each[0].tensors))
    if reading is None:
        part = re.search(r"-\d+-of-\d+$", path.stem)
        raise UserError(
            f"'{path}': the {len(chosen.tensors)} tensors ({', '.join(list(chosen.tensors)[:3])}, ...) are of no "
            "network known here",
            hint="it is one part of several: join them"
            if part
            else "name it: --teacher-model torchvision:NAME or timm:NAME; `dgad list models` shows the others",
        )
    if reading.model != (model or reading.model):
        raise UserError(
            f"'{path}': the file holds a {reading.model}, not a {model}",
            hint=f"--teacher-model {reading.model}, or leave it out",
        )
    if reading.complete and (second := recognised({name: chosen.tensors[name] for name in reading.unexpected})):
        raise UserError(
            f"'{path}' holds two networks: a {reading.model} {_under(reading.prefixes[0])} and a {second.model} "
            f"{_under(second.prefixes[0])}",
            hint="save the state dict of one of them",
        )
    net = find_model(reading.model)(in_channels, classes)
    _refuse_misfit(checkpoint, chosen, reading, net, model, in_channels=in_channels, classes=classes)
    raise AssertionError(f"{path}: nothing is wrong with it")


def _under(prefix: str) -> str:
    return f"under '{prefix.removesuffix('.')}'" if prefix else "under no prefix"


def _refuse_others(
    checkpoint: Checkpoint,
    usable: Sequence[tuple[StateDict, Reading]],
    on_message: Callable[[str], None],
) -> None:
    """Look at the other networks in a file: equal copies do not matter, of others it is said which one counts.

    Raises:
        UserError: nothing tells which one that is.
    """
    chosen, reading = usable[0]
    shapes, _ = layout_of(find_model(reading.model))
    first = _bare(chosen.tensors, reading.prefixes[0], shapes)
    for prefix in reading.prefixes[1:]:
        if not _equal(first, _bare(chosen.tensors, prefix, shapes)):
            raise UserError(
                f"'{checkpoint.path}' holds two networks that differ, {_under(reading.prefixes[0])} and "
                f"{_under(prefix)}",
                hint="save the state dict of one of them",
            )
    for other, read in usable[1:]:
        if read.model == reading.model and _equal(first, _bare(other.tensors, read.prefixes[0], shapes)):
            continue
        if other.rank == chosen.rank:
            raise UserError(
                f"'{checkpoint.path}' holds two networks that differ, {_under(chosen.where)} and {_under(other.where)}",
                hint="save the state dict of one of them",
            )
        on_message(
            f"'{checkpoint.path}' holds a {read.model} {_under(other.where)} too, which differs: the teacher is the "
            f"{reading.model} {_under(chosen.where)}"
        )


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two networks have the same weights. Counts of batches do not matter."""
    names = {name for name in one if not counts_batches(name)}
    return names == {name for name in other if not counts_batches(name)} and all(
        same(one[name], other[name]) for name in names
    )


def _bare(tensors: Mapping[str, Tensor], prefix: str, names: Collection[str]) -> dict[str, Tensor]:
    """Those of a network's tensors that are there, under its own names."""
    return {name: tensors[prefix + name] for name in names if prefix + name in tensors}


def _refuse_misfit(
    checkpoint: Checkpoint,
    chosen: StateDict,
    reading: Reading,
    net: nn.Module,
    given: str,
    *,
    in_channels: int,
    classes: int,
) -> None:
    """Compare names and shapes with the network's, and say at once what differs."""
    path, model, prefix, state = checkpoint.path, reading.model, reading.prefixes[0], net.state_dict()
    tensors = _bare(chosen.tensors, prefix, state)
    for name, tensor in tensors.items():
        if kind := odd_kind(tensor):
            raise UserError(f"'{path}': {name} is no plain tensor, but {kind}", hint=_PLAIN[kind])
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    stem, head = ends_of(net)
    missing = [name for name in expected if name not in shapes and not counts_batches(name)]
    unexpected = [name.removeprefix(prefix) for name in reading.unexpected]
    wrong = [name for name in expected if name in shapes and shapes[name] != expected[name]]
    if not missing and not unexpected:
        if head in wrong and shapes[head][1:] == expected[head][1:]:
            raise UserError(
                f"'{path}': the {model} knows {shapes[head][0]} classes, the dataset has {classes}",
                hint="choose a teacher of this dataset, or --teacher auto to train one",
            )
        if stem in wrong and shapes[stem][:1] + shapes[stem][2:] == expected[stem][:1] + expected[stem][2:]:
            raise UserError(
                f"'{path}': the {model} takes {shapes[stem][1]} channels, the images have {in_channels}",
                hint="choose a teacher of this dataset, or --teacher auto to train one",
            )
    rounded = [
        name
        for name in state
        if name in tensors
        and tensors[name].is_floating_point() != state[name].is_floating_point()
        and not counts_batches(name)  # averaged over epochs, they are fractions
    ]
    reasons = [
        *(f"{name} is {_size(shapes[name])}, expected {_size(expected[name])}" for name in wrong),
        *(f"{name} is {tensors[name].dtype}, expected {state[name].dtype}" for name in rounded),
        *(f"{name} is missing" for name in missing),
        *(f"{name} is unexpected" for name in unexpected),
    ]
    if reasons:
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise UserError(
            f"'{path}' does not fit a {model}: {'; '.join(reasons[:5])}{more}",
            hint=_way_out(path.stem, given, missing=bool(missing), wrong=bool(wrong), rounded=bool(rounded)),
        )


_PLAIN = {
    "a sparse one": "save it dense: tensor.to_dense()",
    "a quantised one": "save the network as it is before it is quantised",
    "a nested one": "save the network's own state dict",
    "one without values": "save the state dict once the weights are there, and off the meta device",
}


def _way_out(stem: str, given: str, *, missing: bool, wrong: bool, rounded: bool) -> str:
    """What to do about weights that do not fit."""
    if missing and re.search(r"-\d+-of-\d+$", stem):
        return "it is one part of several: join them"
    if missing or wrong:
        other = (
            "leave --teacher-model out to tell the network from the weights" if given else "name it: --teacher-model"
        )
        return f"{other}; `dgad list models` shows the networks"
    return "save the weights in floating point" if rounded else _NOT_READ


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
