"""What wrappers make of a network's names: prefixes, a second copy, a normalisation, bookkeeping. By names alone."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Names under which PyTorch's own wrappers put a module, anywhere in a network. No network here has such a part."""

_MOST_CHANNELS = 64
_DEEPEST = 64
"""Parts of a name; a hostile one has thousands."""

_MEAN = {"mean", "means", "mu", "avg", "average"}
_STD = {"std", "stds", "sigma", "stdev", "stddev", "sd"}
_NO_NORMALISER = {"running", "inv", "inverse", "rec", "recip", "reciprocal", "log", "rstd", "denorm", "unnorm"}
_NO_NORMALISER |= {"denormalize", "unnormalize", "denormalise", "unnormalise", "denormalizer", "unnormalizer"}

_COUNTER = re.compile(
    r"initted|n_averaged|(n|num)_updates|update_count|total_(ops|params)|flops|macs"
    r"|((global|current|cur|train|training|num|n|opt|optimizer)_)*(step|epoch|iter|iteration|update|batch)(s|es)?(_count)?",
    re.IGNORECASE,
)
"""Counts of whole numbers, which no forward pass reads. A step that is no whole number may be that of a quantiser."""
_SCALAR = re.compile(
    r"(ema_)?decay|lr|learning_rate|version"
    r"|((best|last|test|train|val|valid|clean|adv|robust|nat|pgd|top1|top5)_)*(acc|accuracy|acc1|acc5|prec1|loss|score|err)",
    re.IGNORECASE,
)
_TRAINING_PART = re.compile(
    r"(\w+_)?(loss|losses|loss_fn|loss_func|loss_function|criterion|criteria|metrics?|acc|accuracy"
    r"|optim|optimizers?|scheduler|schedulers|grad_scaler)(_?\d+)?",
    re.IGNORECASE,
)
"""Parts of a module that training has and answering has not: a loss with its weights of classes, say."""


@dataclass(frozen=True)
class Reading:
    """A state dict, read as one network.

    Attributes:
        model: name of that network.
        prefixes: before the network's names; several where it is there several times.
        complete: all of the network's names are there, under every one of the prefixes.
        normaliser: names of the tensors that an input is normalised with, to "mean" or "std".
        aside: names of bookkeeping that the network's answers do not depend on.
        unexpected: names of whatever else is there.
    """

    model: str
    prefixes: tuple[str, ...]
    complete: bool
    normaliser: Mapping[str, str]
    aside: tuple[str, ...]
    unexpected: tuple[str, ...]


def read_as(tensors: Mapping[str, Tensor], model: str, expected: Collection[str]) -> Reading:
    """How a state dict holds a network whose state has the names `expected`.

    Under every prefix that all of these names are found with; else under the one with the most of them.
    """
    needed = [name for name in expected if not counts_batches(name)]
    found = _prefixes(tensors, needed)
    complete = tuple(prefix for prefix, count in found.items() if count == len(needed))
    prefixes = complete or tuple(sorted(found, key=lambda prefix: -found[prefix])[:1]) or ("",)
    owned = {prefix + name for prefix in prefixes for name in expected}
    normaliser: dict[str, str] = {}
    aside, unexpected = [], []
    for name in [name for name in tensors if name not in owned]:
        if any(_TRAINING_PART.fullmatch(part) for part in name.split(".")[:-1]):
            aside.append(name)
        elif role := normaliser_role(name, tensors[name]):
            normaliser[name] = role
        elif _is_bookkeeping(name, tensors[name]):
            aside.append(name)
        else:
            unexpected.append(name)
    return Reading(model, prefixes, bool(complete), normaliser, tuple(aside), tuple(unexpected))


def without_transparent(name: str) -> str:
    """A name as it is without DataParallel, `torch.compile`, FSDP and activation checkpointing."""
    if name.count(".") > _DEEPEST:
        return name
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)


def counts_batches(name: str) -> bool:
    """Whether this is BatchNorm's count of batches, which old files lack and eval mode does not read."""
    return name.endswith("num_batches_tracked")


def odd_kind(tensor: Tensor) -> str:
    """What a tensor is that holds its values in another way than one after the other: "sparse", "quantised", ..."""
    if tensor.device.type == "meta":
        return "one without values"
    if tensor.is_quantized:
        return "a quantised one"
    if tensor.is_nested:
        return "a nested one"
    return "" if tensor.layout == torch.strided else "a sparse one"


def summary(names: Iterable[str]) -> str:
    """Some names of tensors in a few words: `n_averaged, total_ops (58 times)`."""
    counts = Counter(name.rpartition(".")[2] if _COUNTER.fullmatch(name.rpartition(".")[2]) else name for name in names)
    words = [name if count == 1 else f"{name} ({count} times)" for name, count in counts.items()]
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")


def _prefixes(names: Iterable[str], needed: Collection[str]) -> Counter[str]:
    """Everything that stands before one of `needed` in one of `names`, and before how many of them."""
    behind: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        behind[name].append("")
        cut = -1
        for _ in range(_DEEPEST):
            cut = name.find(".", cut + 1)
            if cut < 0:
                break
            behind[name[cut + 1 :]].append(name[: cut + 1])
    return Counter(prefix for name in needed for prefix in behind.get(name, ()))


def normaliser_role(name: str, tensor: Tensor) -> str:
    """Whether a tensor is the "mean" or "std" that an input is normalised with; empty for neither.

    What is named otherwise is not guessed at, and not dropped either: it is unexpected.
    """
    if odd_kind(tensor) or not tensor.is_floating_point() or not 1 <= tensor.numel() <= _MOST_CHANNELS:
        return ""
    if sum(size > 1 for size in tensor.shape) > 1 or _NO_NORMALISER & _words(name):
        return ""
    last = _words(name.rpartition(".")[2])
    if last & _MEAN and last & _STD:
        return ""
    return "mean" if last & _MEAN else "std" if last & _STD else ""


def _words(name: str) -> set[str]:
    """`normalizer.new_mean`, `pixelStd`: the words that a name is made of, in small letters."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _is_bookkeeping(name: str, tensor: Tensor) -> bool:
    last = name.rpartition(".")[2]
    # TRADES' WideResNets carry a second block1 that no forward pass reads.
    if counts_batches(name) or "sub_block1" in name.split("."):
        return True
    if odd_kind(tensor) or tensor.numel() != 1 or tensor.is_complex():
        return False
    if _SCALAR.fullmatch(last):
        return True
    return _COUNTER.fullmatch(last) is not None and float(tensor.detach().double()) % 1 == 0
