"""Recognises which network a state dict holds, and under which prefix, by names and shapes alone."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice

import torch
from torch import Tensor, nn

from dgad_tk.common import UserError
from dgad_tk.models import FAMILIES, MODELS
from dgad_tk.models.libraries import Builder
from dgad_tk.teachers.normalisation import normaliser_role
from dgad_tk.teachers.wrappers import counts_batches, is_bookkeeping, is_of_training, is_unread

_DEEPEST = 64
"""Parts of a name that are looked at. A hostile name has thousands."""


@dataclass(frozen=True)
class Reading:
    """A state dict, read as one network.

    Attributes:
        tensors: of the state dict.
        model: name of the network.
        prefixes: that stand before the network's names; several where it is stored several times.
        complete: all of the network's names are there, under each prefix.
        normaliser: names of tensors that normalise the input.
        aside: names of tensors that do not change the answers, such as counts.
        unexpected: names of all other tensors.
    """

    tensors: Mapping[str, Tensor]
    model: str
    prefixes: tuple[str, ...]
    complete: bool
    normaliser: tuple[str, ...]
    aside: tuple[str, ...]
    unexpected: tuple[str, ...]

    def weights(self, names: Collection[str], prefix: str | None = None) -> dict[str, Tensor]:
        """The network's tensors that are there, by its own names; under the first prefix if none is given."""
        before = self.prefixes[0] if prefix is None else prefix
        return {name: self.tensors[before + name] for name in names if before + name in self.tensors}


def recognised(tensors: Mapping[str, Tensor]) -> Reading | None:
    """The largest model whose names are all in a state dict; there may be other names too.

    A WideResNet is recognised by its depth and width, even where MODELS has no such row: `wrn-40-2`.
    """
    layouts = [(name, *layout_of(build)) for name, build in _candidates(tensors).items()]
    for name, shapes, free in sorted(layouts, key=lambda each: -len(each[1])):
        reading = read_as(tensors, name, shapes)
        if reading.complete and any(
            _has_shapes(reading.weights(shapes, each), shapes, free) for each in reading.prefixes
        ):
            return reading
    return None


def read_as(tensors: Mapping[str, Tensor], model: str, expected: Collection[str]) -> Reading:
    """A state dict read as a network with the names `expected`.

    The prefixes are all those under which every name is found; else the one with the most names.
    """
    needed = [name for name in expected if not counts_batches(name)]
    found = _prefixes(tensors, needed)
    complete = tuple(prefix for prefix, count in found.items() if count == len(needed))
    prefixes = complete or tuple(prefix for prefix, _ in found.most_common(1)) or ("",)
    owned = {prefix + name for prefix in prefixes for name in expected}
    beside: defaultdict[str, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if name not in owned:
            beside[_kind(name, tensor)].append(name)
    kinds = (tuple(beside[kind]) for kind in ("normaliser", "aside", "unexpected"))
    return Reading(tensors, model, prefixes, bool(complete), *kinds)


def _kind(name: str, tensor: Tensor) -> str:
    """What a tensor outside the network is: the field of Reading that lists it."""
    if is_of_training(name):
        return "aside"
    if normaliser_role(name, tensor):
        return "normaliser"
    return "aside" if is_unread(name) or is_bookkeeping(name, tensor) else "unexpected"


def _prefixes(names: Iterable[str], needed: Collection[str]) -> Counter[str]:
    """How many of `needed` are found in `names`, per prefix that stands before them."""
    behind: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        for cut in (0, *(dot.end() for dot in islice(re.finditer(r"\.", name), _DEEPEST))):
            behind[name[cut:]].append(name[:cut])
    return Counter(prefix for name in needed for prefix in behind.get(name, ()))


def _candidates(tensors: Mapping[str, Tensor]) -> dict[str, Builder]:
    """Builders by name: the rows of MODELS, and each WideResNet that the tensors' names and shapes speak of."""
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
            except UserError:  # the shapes belong to no WideResNet
                continue
            if build is not None:
                found.setdefault(name, build)
    return found


@lru_cache(maxsize=64)  # all models take a second, and a file may hold several state dicts
def layout_of(build: Builder) -> tuple[dict[str, torch.Size], set[str]]:
    """Shapes by name of a network for 3 channels and 10 classes, and the names whose shapes depend on these numbers."""
    with torch.device("meta"):
        net = build(3, 10)
    stem, head = ends_of(net)
    return {name: tensor.shape for name, tensor in net.state_dict().items()}, {stem, head, head[:-6] + "bias"}


def _has_shapes(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], free: set[str]) -> bool:
    return all(
        tensor.is_nested or tensor.shape == shapes[name]
        for name, tensor in weights.items()
        if name not in free and not counts_batches(name)
    )


def ends_of(net: nn.Module) -> tuple[str, str]:
    """Names of the weights that read the image and that write the logits, as far as their order tells."""
    weights = [name for name, parameter in net.named_parameters() if parameter.dim() >= 2] or [""]
    return weights[0], weights[-1]
