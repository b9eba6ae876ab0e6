"""Builds the network that a foreign file holds: which one it is, whether its weights fit, how it normalises."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from dgad_tk.common import UserError
from dgad_tk.models import build_model, find_model
from dgad_tk.models.own import names_code
from dgad_tk.teachers.foreign import StateDict, same
from dgad_tk.teachers.normalisation import TEACHER, Role, Values, check_given, normalisation_of, normaliser_role
from dgad_tk.teachers.recognition import Reading, ends_of, read_as, recognised
from dgad_tk.teachers.wrappers import counts_batches, is_unread, odd_kind, summary

_PLAIN = {
    "a sparse one": "save it dense: tensor.to_dense()",
    "a quantised one": "save the network as it is before it is quantised",
    "a nested one": "save the network's own state dict",
    "one without values": "save the state dict once the weights are there, and off the meta device",
}
_ONE_OF_THEM = "save the state dict of one of them"
_JOIN = "it is one part of several: join them"
_NOT_READ = "if only training reads it, save the state dict without it; a normalisation has to be given instead, as "


@dataclass(frozen=True)
class Wanted:
    """The network that is looked for in a file.

    Attributes:
        model: name for `build_model`; empty to recognise a row of MODELS or a family by names and shapes.
        channels, classes: of the dataset.
        mean, std: normalisation of images in [0, 1], unless the file brings its own; empty for none.
        role: what it is looked for as.
        any_head: leave out the layer that gives the logits if the file's knows another number of classes.
    """

    model: str
    channels: int
    classes: int
    mean: Values = ()
    std: Values = ()
    role: Role = TEACHER
    any_head: bool = False

    def build(self, model: str) -> nn.Module:
        """The network `model` without normalisation for these images."""
        return find_model(model)(self.channels, self.classes)


Match = tuple[StateDict, Reading]
"""A state dict of a file, and the network that it was read as."""


def match_network(
    state_dicts: Sequence[StateDict], wanted: Wanted, on_message: Callable[[str], None]
) -> tuple[nn.Module, str]:
    """The network that a file holds, in eval mode on the CPU, and its name.

    Its names may share any prefix. Of several state dicts, the first that holds the network counts.

    Args:
        state_dicts: of the file, by rank.
        on_message: called with one line for each other thing that the file holds, and for a head that is left out; its
            layer then has the first weights that torch draws.

    Raises:
        UserError: it is another network, or several, or one for other images or classes; or mean and std do not fit.
    """
    check_given(wanted.mean, wanted.std, wanted.channels, wanted.role)
    if wanted.model:
        find_model(wanted.model)  # reports a misspelt name before anything about the file
    readings = [(each, _read(each.tensors, wanted)) for each in state_dicts]
    usable = [
        (each, reading)
        for each, reading in readings
        if reading is not None and reading.complete and not reading.unexpected and wanted.model in ("", reading.model)
    ]
    if not usable:
        _refuse_all(readings, wanted)
    chosen, reading = usable[0]
    beside = _beside(state_dicts, chosen, wanted.channels)
    own = beside | {name: reading.tensors[name] for name in reading.normaliser}
    mean, std = normalisation_of(chosen.path, own, (wanted.mean, wanted.std), wanted.channels, wanted.role)
    teacher = build_model(reading.model, in_channels=wanted.channels, classes=wanted.classes, mean=mean, std=std)
    net = teacher.get_submodule("net")
    head = _other_head(reading, net, wanted) if wanted.any_head else []
    _refuse_misfit(usable[0], net, wanted, head)
    _refuse_others(usable, net.state_dict(), wanted.role, on_message)
    # In the network's own types: some others have no isfinite, and a finite float64 may be infinite as float32.
    types = {name: tensor.dtype for name, tensor in net.state_dict().items()}
    weights = {name: each.to(types[name]) for name, each in reading.weights(types).items() if name not in head}
    if broken := [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]:
        raise UserError(
            f"'{chosen.path}': {broken[0]} is not finite", hint="its training broke down; take another checkpoint"
        )
    net.load_state_dict(weights, strict=False)  # only counts of batches may be missing, and a head
    if head:
        known = len(reading.weights(types)[head[0]])
        on_message(
            f"'{chosen.path}' knows {known} classes, the dataset has {wanted.classes}: {' and '.join(head)} start anew"
        )
    if beside:
        on_message(
            f"'{chosen.path}' holds {' and '.join(beside)} beside its network: its images are normalised by them"
        )
    if said := [name for name in reading.aside if not is_unread(name)]:
        on_message(f"'{chosen.path}' also holds {summary(said)}: no part of the {reading.model}, left aside")
    return teacher.eval(), reading.model


def _read(tensors: Mapping[str, Tensor], wanted: Wanted) -> Reading | None:
    """A state dict as the network that it holds, else, as far as it goes, as the named one; else None."""
    if names_code(wanted.model):  # its names may be those of a row too, and its code may not run on the meta device
        return read_as(tensors, wanted.model, wanted.build(wanted.model).state_dict())
    found = recognised(tensors)
    if not wanted.model or (found is not None and (found.model == wanted.model or not found.unexpected)):
        return found
    with torch.device("meta"):
        return read_as(tensors, wanted.model, wanted.build(wanted.model).state_dict())


def _beside(state_dicts: Sequence[StateDict], chosen: StateDict, channels: int) -> dict[str, Tensor]:
    """A mean and std beside the network's state dict: in a mapping around it, or under a key such as "preproc".

    Elsewhere they may be statistics of something else, such as of accuracies over seeds.
    """
    found: dict[str, Tensor] = {}
    for other in state_dicts:
        around = other is not chosen and chosen.keys[: len(other.keys)] == other.keys
        if not around and not (other.keys and re.search("norm|preproc|transform", other.keys[-1], re.IGNORECASE)):
            continue
        roles = {name: normaliser_role(name, tensor) for name, tensor in other.tensors.items()}
        fitting = [name for name, role in roles.items() if role and other.tensors[name].numel() == channels]
        if channels > 1 or len({roles[name] for name in fitting}) > 1:
            found |= {".".join((*other.keys, name)): other.tensors[name] for name in fitting}
    return found


def _refuse_all(readings: Sequence[tuple[StateDict, Reading | None]], wanted: Wanted) -> NoReturn:
    """Raise for a file without the wanted network: the error says what its largest state dict holds."""
    chosen, reading = max(readings, key=lambda each: len(each[0].tensors))
    path = chosen.path
    if reading is None:
        raise UserError(
            f"'{path}': the {len(chosen.tensors)} tensors ({', '.join(list(chosen.tensors)[:3])}, ...) are of no "
            "network known here",
            hint=_JOIN
            if _is_a_part(chosen)
            else f"name it: {wanted.role.model} torchvision:NAME or timm:NAME; `dgad list models` shows the others",
        )
    if wanted.model not in ("", reading.model):
        raise UserError(
            f"'{path}': the file holds a {reading.model}, not a {wanted.model}",
            hint=f"{wanted.role.model} {reading.model}, or leave it out",
        )
    if reading.complete and (second := recognised({name: reading.tensors[name] for name in reading.unexpected})):
        raise UserError(
            f"'{path}' holds two networks: a {reading.model} {_under(reading.prefixes[0])} and a {second.model} "
            f"{_under(second.prefixes[0])}",
            hint=_ONE_OF_THEM,
        )
    _refuse_misfit((chosen, reading), wanted.build(reading.model), wanted, [])
    raise AssertionError(f"{path}: nothing is wrong with it")


def _refuse_others(
    usable: Sequence[Match], shapes: Collection[str], role: Role, on_message: Callable[[str], None]
) -> None:
    """Report a network that differs from the chosen one; raise UserError where neither comes first by its rank."""
    chosen, reading = usable[0]
    first = reading.weights(shapes)
    copies = [(prefix, reading.weights(shapes, prefix)) for prefix in reading.prefixes[1:]]
    differing = [_under(prefix) for prefix, copy in copies if not _equal(first, copy)]
    others = [
        (state, other)
        for state, other in usable[1:]
        if other.model != reading.model or not _equal(first, other.weights(shapes))
    ]
    names = [(_under(reading.prefixes[0]), under) for under in differing]
    names += [(_under(chosen.where), _under(state.where)) for state, _ in others if state.rank == chosen.rank]
    if names:
        raise UserError(
            f"'{chosen.path}' holds two networks that differ, {names[0][0]} and {names[0][1]}", hint=_ONE_OF_THEM
        )
    for state, other in others:
        on_message(
            f"'{chosen.path}' holds a {other.model} {_under(state.where)} too, which differs: "
            f"the {role.noun} is the {reading.model} {_under(chosen.where)}"
        )


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two networks have the same weights, except for counts of batches."""
    names, theirs = ({name for name in each if not counts_batches(name)} for each in (one, other))
    return names == theirs and all(same(one[name], other[name]) for name in names)


def _other_head(reading: Reading, net: nn.Module, wanted: Wanted) -> list[str]:
    """Names of the tensors of a head that knows another number of classes, if nothing else has another shape."""
    state, found, known = net.state_dict(), [], set()
    for name, tensor in reading.weights(state).items():
        size, expected = list(tensor.shape), list(state[name].shape)
        if size != expected:
            found.append(name)
            known.add(size[0] if size and expected == [wanted.classes, *size[1:]] else 0)
    return found if len(known) == 1 and 0 not in known else []


def _refuse_misfit(found: Match, net: nn.Module, wanted: Wanted, head: Sequence[str]) -> None:
    """Raise UserError where names, shapes or types differ from the network's, except `head`; lists the first five."""
    (chosen, reading), state = found, net.state_dict()
    path, model = chosen.path, reading.model
    tensors = {name: each for name, each in reading.weights(state).items() if name not in head}
    for name, tensor in tensors.items():
        if kind := odd_kind(tensor):
            raise UserError(f"'{path}': {name} is no plain tensor, but {kind}", hint=_PLAIN[kind])
    missing = [name for name in state if name not in tensors and name not in head and not counts_batches(name)]
    unexpected = [name.removeprefix(reading.prefixes[0]) for name in reading.unexpected]
    wrong = [name for name, tensor in tensors.items() if tensor.shape != state[name].shape]
    rounded = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() != state[name].is_floating_point()
        and not counts_batches(name)  # averaged over epochs, they are fractions
    ]
    if not missing and not unexpected:
        stem, head = ends_of(net)
        for name, axis, knows in (
            (head, 0, f"knows {{}} classes, the dataset has {wanted.classes}"),
            (stem, 1, f"takes {{}} channels, the images have {wanted.channels}"),
        ):
            if name not in wrong:
                continue
            size, expected = list(tensors[name].shape), list(state[name].shape)
            if [*size[:axis], expected[axis], *size[axis + 1 :]] == expected:
                raise UserError(f"'{path}': the {model} {knows.format(size[axis])}", hint=wanted.role.other)
    reasons = [
        *(f"{name} is {_size(tensors[name])}, expected {_size(state[name])}" for name in wrong),
        *(f"{name} is {tensors[name].dtype}, expected {state[name].dtype}" for name in rounded),
        *(f"{name} is missing" for name in missing),
        *(f"{name} is unexpected" for name in unexpected),
    ]
    if not reasons:
        return
    if missing and _is_a_part(chosen):
        hint = _JOIN
    elif missing or wrong:
        flag = wanted.role.model
        told = f"leave {flag} out to tell the network from the weights"
        hint = f"{told if wanted.model else f'name it: {flag}'}; `dgad list models` shows the networks"
    else:
        hint = "save the weights in floating point" if rounded else _NOT_READ + wanted.role.both
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    raise UserError(f"'{path}' does not fit a {model}: {'; '.join(reasons[:5])}{more}", hint=hint)


def _is_a_part(state: StateDict) -> bool:
    return re.search(r"-\d+-of-\d+$", state.path.stem) is not None


def _under(prefix: str) -> str:
    return f"under '{prefix.removesuffix('.')}'" if prefix else "under no prefix"


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
