"""Recognises what wrappers and training leave in a state dict beside a network, by names and shapes alone."""

import re
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

_TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Names that PyTorch's own wrappers insert. No network here has a part with such a name."""

_COUNTER = re.compile(
    r"initted|n_averaged|(n|num)_updates|update_count|total_(ops|params)|flops|macs"
    r"|((global|current|cur|train|training|num|n|opt|optimizer)_)*(step|epoch|iter|iteration|update|batch)(s|es)?(_count)?",
    re.IGNORECASE,
)
"""Counts, which no forward pass reads. A "step" that is not a whole number may be the step of a quantiser."""
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
"""Parts of a module that only training uses, such as a loss with its weights per class."""


def without_transparent(name: str) -> str:
    """A name without what DataParallel, `torch.compile`, FSDP and activation checkpointing insert."""
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)


def counts_batches(name: str) -> bool:
    """Whether this is BatchNorm's count of batches. Old files lack it, and eval mode does not read it."""
    return name.endswith("num_batches_tracked")


def is_unread(name: str) -> bool:
    """Whether no forward pass reads this tensor: a count, or the unused second block1 of TRADES' WideResNets."""
    return counts_batches(name) or "sub_block1" in name.split(".")


def is_of_training(name: str) -> bool:
    """Whether a tensor belongs to a part that only training uses, such as a loss or an optimizer."""
    return any(_TRAINING_PART.fullmatch(part) for part in name.split(".")[:-1])


def is_bookkeeping(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is one number that only training reads, such as a count of steps or an accuracy."""
    last = name.rpartition(".")[2]
    if odd_kind(tensor) or tensor.numel() != 1 or tensor.is_complex():
        return False
    if _SCALAR.fullmatch(last):
        return True
    return _COUNTER.fullmatch(last) is not None and float(tensor.detach().double()) % 1 == 0


def odd_kind(tensor: Tensor) -> str:
    """What a tensor is that does not hold its values as a dense array, such as "a sparse one"; else empty."""
    if tensor.device.type == "meta":
        return "one without values"
    if tensor.is_quantized:
        return "a quantised one"
    if tensor.is_nested:
        return "a nested one"
    return "" if tensor.layout == torch.strided else "a sparse one"


def summary(names: Iterable[str]) -> str:
    """The first five names of tensors, counts summed up: `n_averaged, total_ops (58 times)`."""
    counts = Counter(name.rpartition(".")[2] if _COUNTER.fullmatch(name.rpartition(".")[2]) else name for name in names)
    words = [name if count == 1 else f"{name} ({count} times)" for name, count in counts.items()]
    return ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")
