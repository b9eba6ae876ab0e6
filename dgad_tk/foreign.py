"""Checkpoints of other projects: read without running anything, unwrapped, under the names of the bare network."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dgad_tk.common import UserError

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".ckpt", ".bin")

CONTAINERS = ("net", "state_dict", "model_state_dict", "model", "student", "ema")
"""Keys under which projects keep the weights beside epochs and optimizers; the first that is there counts."""

PREFIXES = ("module.", "model.", "_orig_mod.", "net.")
"""What DataParallel, torch.compile and wrappers put before every key, in any order and number."""

_NORMALISATION = re.compile(r"(?:\w*norm\w*\.)?(?:(?P<mean>_?mean|_?mu)|(?P<std>_?std|_?sigma))", re.IGNORECASE)

_MOST_CHANNELS = 64
_DEEPEST = 8
"""Containers in containers; a pickle may also hold itself."""

# Accuracies are often saved as numpy scalars. Making one of these types computes nothing but the value.
_NUMPY: list[Any] = [
    np.dtype,
    (np.float64().__reduce__()[0], "numpy.core.multiarray.scalar"),  # as NumPy 1 wrote it
    (np.float64().__reduce__()[0], "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")),
]


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a file under the names that the bare network gives them.

    Attributes:
        tensors: name to weights, without normalisation.
        mean, std: a value a channel that the file itself normalises with, or empty.
    """

    path: Path
    tensors: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights in a safetensors file or in anything that `torch.save` wrote.

    Raises:
        UserError: damaged, of another kind, with objects that would have to be run, or without weights.
    """
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    tensors: dict[str, Tensor] = {}
    for long_name, tensor in _unwrapped(found, path).items():
        name = _without_prefixes(long_name)
        if name in tensors:
            raise UserError(
                f"'{path}' holds two networks: '{name}' is there more than once, with and without a prefix",
                hint="save the state dict of one of them",
            )
        # TRADES' WideResNets carry a second block1 that no forward pass reads.
        if not name.startswith("sub_block1."):
            tensors[name] = tensor.detach()
    if odd := [name for name, tensor in tensors.items() if not _is_plain(tensor)]:
        raise UserError(f"'{path}': {odd[0]} is no plain tensor", hint="save the network before it is quantised or cut")
    normalisation: dict[str, tuple[float, ...]] = {}
    for name in list(tensors):
        small = tensors[name].is_floating_point() and tensors[name].numel() <= _MOST_CHANNELS
        if small and (match := _NORMALISATION.fullmatch(name)):
            normalisation[str(match.lastgroup)] = tuple(tensors.pop(name).double().flatten().tolist())
    if len(normalisation) == 1:
        raise UserError(
            f"'{path}' holds a {' or '.join(normalisation)} to normalise with, but not both mean and std",
            hint="save the state dict of the network alone, and give --teacher-mean and --teacher-std",
        )
    return Checkpoint(path, tensors, normalisation.get("mean", ()), normalisation.get("std", ()))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read '{path}' as a teacher: not a whole safetensors file: {error}", hint="copy it again"
        ) from None


def _read_pickle(path: Path) -> object:
    """What `torch.save` wrote, zipped or not, as tensors and plain values; nothing in it is run."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY):
            warnings.simplefilter("ignore")  # of odd pickles; what they are not is what counts
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises whatever the damaged bytes lead it to
        text = str(error)
        if blocked := re.search(r"GLOBAL (\S+)", text):
            raise UserError(
                f"cannot read '{path}' as a teacher: it holds more than weights, {blocked[1]} would have to be run",
                hint="where you trust the file, load it with its own project and save only the state_dict()",
            ) from None
        if "TorchScript" in text:
            raise UserError(
                f"cannot read '{path}' as a teacher: it is a TorchScript file, a program of its own",
                hint="save the state_dict() of the network that it was made from",
            ) from None
        reason = _short(text.rpartition("WeightsUnpickler error:")[2]) or type(error).__name__
        raise UserError(
            f"cannot read '{path}' as a teacher: {reason}",
            hint="it may be cut short or no PyTorch checkpoint; copy it again, or save the state dict anew",
        ) from None
    return content


def _short(text: str) -> str:
    """The first line that says something, without torch's advice to load the file unsafely."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = re.split(r"In PyTorch 2\.6|Please |Re-running", lines[0])[0] if lines else ""
    return first.strip()[:200]


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside containers of containers."""
    for _ in range(_DEEPEST):
        if isinstance(content, Mapping):
            inner = (content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping))
            content = next(inner, content)
    if not isinstance(content, Mapping):
        raise UserError(f"'{path}' holds a {type(content).__name__}, not a state dict", hint="save net.state_dict()")
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(
            f"'{path}' holds no weights where they are expected; found {keys}",
            hint=f"save net.state_dict(), alone or under one of {', '.join(CONTAINERS)}",
        )
    return tensors


def _without_prefixes(name: str) -> str:
    while prefix := next((each for each in PREFIXES if name.startswith(each)), ""):
        name = name.removeprefix(prefix)
    return name


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"


def counts_batches(name: str) -> bool:
    """Whether this is BatchNorm's count of batches, which old files lack and eval mode does not read."""
    return name.endswith("num_batches_tracked")
