"""Weights of other projects brought into a network: which one it is, whether they fit, how it normalises."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dgad_tk.common import UserError
from dgad_tk.foreign import Checkpoint, counts_batches
from dgad_tk.models import MODELS, build_model, find_model


def match_network(
    checkpoint: Checkpoint,
    model: str,
    *,
    in_channels: int,
    classes: int,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> tuple[nn.Module, str]:
    """The network that a checkpoint holds, in eval mode on the CPU, and its name.

    Args:
        model: what `build_model` takes; empty to tell it from names and shapes, which works for rows of MODELS.
        mean, std: of images in [0, 1], applied inside the network unless the file brings its own.

    Raises:
        UserError: it is another network, or one for other images or classes; or mean and std do not fit.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    mean, std = _normalisation(checkpoint, mean, std, in_channels)
    if model:
        find_model(model)  # a misspelt name, before anything is said about the file
    found = recognise(tensors)
    if not model and not found:
        raise UserError(
            f"'{path}': the {len(tensors)} tensors ({', '.join(list(tensors)[:3])}, ...) are of no network known here",
            hint="name it: --teacher-model torchvision:NAME or timm:NAME; `dgad list models` shows the others",
        )
    if found and (found not in MODELS or found != (model or found)):
        raise UserError(
            f"'{path}': the file holds a {found}, not a {model}" if model else f"'{path}': the file holds a {found}",
            hint=f"--teacher-model {found}" if found in MODELS else "choose a network of `dgad list models`",
        )
    model = model or found
    teacher = build_model(model, in_channels=in_channels, classes=classes, mean=mean, std=std)
    net = teacher.get_submodule("net")
    _refuse_misfit(checkpoint, net, model, in_channels=in_channels, classes=classes)
    if broken := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise UserError(f"'{path}': {broken[0]} is not finite", hint="its training broke down; take another checkpoint")
    net.load_state_dict(tensors, strict=False)  # of what strict would refuse, only missing batch counts are left
    return teacher.eval(), model


def recognise(tensors: Mapping[str, Tensor]) -> str:
    """The row of MODELS whose names and shapes these are, whatever its channels and classes; else an empty string.

    A WideResNet is told by its own depth and width, also one that is no row: `wrn-40-2`.
    """
    if wide := _wide_resnet(tensors):
        return wide
    names = {name for name in tensors if not counts_batches(name)}
    for row, build in MODELS.items():
        with torch.device("meta"):
            net = build(3, 10)
        expected = {name: tensor for name, tensor in net.state_dict().items() if not counts_batches(name)}
        stem, head = _ends(net)
        free = {stem, head, head.removesuffix("weight") + "bias"}
        if names == set(expected) and all(tensors[name].shape == expected[name].shape for name in names - free):
            return row
    return ""


def _ends(net: nn.Module) -> tuple[str, str]:
    """Names of the weights that read the image and that write the logits."""
    weights = [name for name, parameter in net.named_parameters() if parameter.dim() >= 2]
    return weights[0], weights[-1]


def _normalisation(
    checkpoint: Checkpoint, mean: Sequence[float], std: Sequence[float], in_channels: int
) -> tuple[Sequence[float], Sequence[float]]:
    """What goes into Normalize: the file's own, else what was given, once it is sound."""
    for flag, values in (("--teacher-mean", mean), ("--teacher-std", std)):
        if bool(mean) != bool(std) or (values and len(values) != in_channels):
            raise UserError(
                f"{flag} takes {in_channels} values here, one a channel, got {len(values)}",
                hint="give both --teacher-mean and --teacher-std, or neither",
            )
        if any(not 0 <= value <= 1 for value in values) or (values is std and 0 in std):
            raise UserError(
                f"{flag} is of pixels in [0, 1], got {_listed(values)}",
                hint="divide by 255 what is meant for grey levels up to 255",
            )
    if not checkpoint.mean:
        return mean, std
    path, found = checkpoint.path, (checkpoint.mean, checkpoint.std)
    own_mean, own_std = (values * in_channels if len(values) == 1 else values for values in found)
    if not len(own_mean) == len(own_std) == in_channels or not all(value > 0 for value in own_std):
        raise UserError(
            f"'{path}' normalises by mean {_listed(found[0])} and std {_listed(found[1])}, "
            f"expected {in_channels} values each, one a channel, and every std above 0",
            hint="choose a teacher for such images",
        )
    if mean and not np.allclose([mean, std], [own_mean, own_std], atol=1e-3):
        raise UserError(
            f"'{path}' normalises by its own mean {_listed(own_mean)} and std {_listed(own_std)}, not by those given",
            hint="leave out --teacher-mean and --teacher-std",
        )
    return own_mean, own_std


def _wide_resnet(tensors: Mapping[str, Tensor]) -> str:
    """`wrn-DEPTH-WIDTH` where the names are TRADES' and the shapes say so, else an empty string."""
    numbers = {match[1] for name in tensors if (match := re.fullmatch(r"block1\.layer\.(\d+)\.conv1\.weight", name))}
    last = tensors.get("block3.layer.0.conv1.weight")
    if not numbers or last is None or last.dim() != 4 or last.shape[0] % 64 or "fc.weight" not in tensors:
        return ""
    return f"wrn-{6 * len(numbers) + 4}-{last.shape[0] // 64}"


def _refuse_misfit(checkpoint: Checkpoint, net: nn.Module, model: str, *, in_channels: int, classes: int) -> None:
    """Compare names and shapes with the network's, and say at once what differs."""
    path, tensors, state = checkpoint.path, checkpoint.tensors, net.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    stem, head = _ends(net)
    missing = [name for name in expected if name not in shapes and not counts_batches(name)]
    unexpected = [name for name in shapes if name not in expected]
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
            hint="name its network: --teacher-model; `dgad list models` shows them",
        )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
