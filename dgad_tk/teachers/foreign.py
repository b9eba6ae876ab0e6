"""Reads the state dicts in a checkpoint of another project, the likeliest network first."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dgad_tk.artifacts.weight_files import read_pickled, read_safetensors
from dgad_tk.common import UserError
from dgad_tk.teachers.wrappers import counts_batches, odd_kind, without_transparent

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".ckpt", ".bin")

CONTAINERS = ("net", "state_dict", "model_state_dict", "model", "student", "ema")
"""Keys under which projects keep the weights beside epochs and optimizers, in order of preference."""

_TRAINING = ("optim", "sched", "scaler", "rng", "random", "callbacks", "loops", "hyper")
"""Beginnings of keys that hold no network."""

_AVERAGED = {"ema", "swa", "average", "averaged", "shadow", "teacher"}
_DEEPEST = 8
"""How deep containers are searched; a pickle may also hold itself."""


@dataclass(frozen=True)
class StateDict:
    """One mapping of names to tensors in a file.

    Attributes:
        path: of the file.
        keys: that lead to the mapping, such as ("model", "ema"); none where the file itself is the mapping.
        tensors: by name, without what PyTorch's own wrappers insert into names.
    """

    path: Path
    keys: tuple[str, ...]
    tensors: dict[str, Tensor]

    @property
    def where(self) -> str:
        return ".".join(self.keys)

    @property
    def rank(self) -> tuple[int, ...]:
        """Lower for a likelier network: by CONTAINERS, then unknown keys, then an average or a teacher."""

        def rank_of(key: str) -> int:
            if _AVERAGED & set(re.split(r"[\W_]+", key.lower())):
                return len(CONTAINERS) + 1
            return CONTAINERS.index(key) if key in CONTAINERS else len(CONTAINERS)

        return tuple(map(rank_of, self.keys))


def read_state_dicts(path: Path, role: str = "a teacher") -> list[StateDict]:
    """The state dicts in a safetensors file or in a file of `torch.save`, by rank; at least one.

    Raises:
        UserError: the file is damaged, of another kind, holds objects that would have to be run, or has no weights.
    """
    before = f"cannot read '{path}' as {role}"
    content: object = read_safetensors(path, before)[0] if path.suffix == ".safetensors" else read_pickled(path, before)
    found = [StateDict(path, keys, _plain_names(tensors, path)) for keys, tensors in _inside(content, (), set())]
    if found:
        return sorted(found, key=lambda each: each.rank)
    if not isinstance(content, Mapping):
        raise UserError(f"'{path}' holds a {type(content).__name__}, not a state dict", hint="save net.state_dict()")
    keys = ", ".join(map(str, list(content)[:5])) or "nothing"
    raise UserError(
        f"'{path}' holds no weights where they are expected; found {keys}",
        hint=f"save net.state_dict(), alone or under one of {', '.join(CONTAINERS)}",
    )


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal in type, shape and values."""
    if odd_kind(one) or odd_kind(other) or one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.numel() > one.untyped_storage().nbytes():
        return False  # an expanded number: a small file can claim more elements than can be compared in a day
    return torch.equal(one, other)


def _inside(
    content: object, keys: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Keys and tensors of every mapping in `content` that holds tensors itself."""
    if len(keys) > _DEEPEST or id(content) in seen:
        return
    seen.add(id(content))
    if isinstance(content, Mapping):
        named = {name: _as_tensor(value) for name, value in content.items() if isinstance(name, str)}
        if own := {name: value for name, value in named.items() if value is not None}:
            yield keys, own
        items = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list | tuple) and len(content) <= _DEEPEST:
        items = [(str(number), value) for number, value in enumerate(content)]
    else:
        return
    for key, value in items:
        if not key.lower().startswith(_TRAINING) and isinstance(value, Mapping | Sequence):
            yield from _inside(value, (*keys, key), seen)


def _as_tensor(value: object) -> Tensor | None:
    """A tensor, or a short list of floats (a mean or std) as one; else None."""
    if isinstance(value, Tensor):
        return value
    short = isinstance(value, list | tuple) and 0 < len(value) <= _DEEPEST
    return torch.tensor(value) if short and all(type(each) is float for each in value) else None  # type: ignore[attr-defined]


def _plain_names(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors by name without PyTorch's wrappers; UserError where two different tensors get the same name."""
    plain: dict[str, Tensor] = {}
    for long_name, tensor in tensors.items():
        name = without_transparent(long_name)
        if name in plain and not counts_batches(name) and not same(plain[name], tensor):
            raise UserError(
                f"'{path}' holds two networks: '{name}' is there more than once, with and without a prefix",
                hint="save the state dict of one of them",
            )
        plain.setdefault(name, tensor.detach())
    return plain
