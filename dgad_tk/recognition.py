"""Which of the models here a state dict holds, by names and shapes alone."""

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor, nn

from dgad_tk.common import UserError
from dgad_tk.models import FAMILIES, MODELS
from dgad_tk.models.libraries import Builder
from dgad_tk.wrappers import Reading, counts_batches, read_as


def recognise(tensors: Mapping[str, Tensor]) -> str:
    """The model whose names and shapes these are, whatever its channels and classes; else an empty string.

    A prefix before all names, a normaliser and bookkeeping do not matter. A WideResNet is told by its own depth and
    width, also one that is no row: `wrn-40-2`.
    """
    found = recognised(tensors)
    return found.model if found and not found.unexpected else ""


def recognised(tensors: Mapping[str, Tensor]) -> Reading | None:
    """The largest model that is in a state dict with all its names, of which there may be more."""
    layouts = [(name, *layout_of(build)) for name, build in _candidates(tensors).items()]
    for name, shapes, free in sorted(layouts, key=lambda each: -len(each[1])):
        reading = read_as(tensors, name, shapes)
        if reading.complete and any(_has_shapes(tensors, prefix, shapes, free) for prefix in reading.prefixes):
            return reading
    return None


def _candidates(tensors: Mapping[str, Tensor]) -> dict[str, Builder]:
    """Rows of MODELS, and the members of families that names and shapes speak of, be they rows or not."""
    found = {name: build for name, build in MODELS.items() if not any(family(name) for family in FAMILIES.values())}
    blocks = [
        match for name in tensors if (match := re.fullmatch(r"((?:.*\.)?)block1\.layer\.\d+\.conv1\.weight", name))
    ]
    for prefix, matches in groupby(blocks, key=lambda match: match[1]):
        last = tensors.get(f"{prefix}block3.layer.0.conv1.weight")
        if last is not None and not last.is_nested and last.dim() == 4 and last.shape[0] % 64 == 0:
            name = f"wrn-{6 * len(list(matches)) + 4}-{last.shape[0] // 64}"
            try:
                build = FAMILIES["wrn-D-K"](name)
            except UserError:  # no network: shapes can say anything
                continue
            if build is not None:
                found.setdefault(name, build)
    return found


@lru_cache(maxsize=64)  # a second for all of them, and a file may hold several state dicts
def layout_of(build: Builder) -> tuple[dict[str, torch.Size], set[str]]:
    """Shapes by name of a network for 3 channels and 10 classes, and the names that these numbers matter to."""
    with torch.device("meta"):
        net = build(3, 10)
    stem, head = ends_of(net)
    return {name: tensor.shape for name, tensor in net.state_dict().items()}, {stem, head, head[:-6] + "bias"}


def _has_shapes(tensors: Mapping[str, Tensor], prefix: str, shapes: Mapping[str, torch.Size], free: set[str]) -> bool:
    stored = {name: tensors[prefix + name] for name in shapes if name not in free and not counts_batches(name)}
    return all(tensor.is_nested or tensor.shape == shapes[name] for name, tensor in stored.items())


def ends_of(net: nn.Module) -> tuple[str, str]:
    """Names of the weights that read the image and that write the logits."""
    weights = [name for name, parameter in net.named_parameters() if parameter.dim() >= 2]
    return weights[0], weights[-1]
