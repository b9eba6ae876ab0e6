"""Weights with their metadata record (safetensors), and the state that a run resumes from. Nothing here runs code."""

from collections.abc import Callable, Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dgad_tk.artifacts.record import KEY, Artifact
from dgad_tk.artifacts.weight_files import read_pickled, read_safetensors
from dgad_tk.common import UserError, reason_of, written_aside
from dgad_tk.models import build_model, normalised
from dgad_tk.models.records import changed_source, trusted_source
from dgad_tk.strangers.first_bytes import archive_of, beginning, is_pickle

STATE_FORMAT = 1


GRAPH = "network.onnx"
"""Name of the tensor that holds the ONNX graph of a network that was made from one, as bytes."""


def save_weights(path: Path, model: nn.Module, artifact: Artifact, graph: bytes = b"") -> None:
    """Write a model's parameters, buffers and record as safetensors, and the ONNX graph that it was made from."""
    tensors = apart(model.state_dict())
    if graph:
        tensors[GRAPH] = torch.frombuffer(bytearray(graph), dtype=torch.uint8)
    _write(path, tensors, artifact)


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, each in memory of its own: safetensors refuses tensors that share some, as tied weights do."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def save_record(path: Path, artifact: Artifact) -> None:
    """Replace the record in a file of `save_weights`."""
    _write(path, read_weights(path)[0], artifact)


def _write(path: Path, tensors: dict[str, Tensor], artifact: Artifact) -> None:
    content = save(tensors, metadata={KEY: artifact.to_json()})
    with written_aside(path) as aside:
        aside.write_bytes(content)  # by Python, whose error names a full disk


def read_weights(path: Path) -> tuple[dict[str, Tensor], Artifact]:
    """Tensors and record of a file that `save_weights` wrote.

    Raises:
        UserError: the file is missing, not safetensors, damaged, or without a record.
    """
    if not path.is_file():
        raise UserError(f"no such file: '{path}'", hint="give a .safetensors file or a run folder of `dgad train`")
    head = beginning(path)
    if archive_of(head) or is_pickle(head):
        raise UserError(
            f"'{path}' is no safetensors file, and only these carry the record of `dgad train`",
            hint="give the run folder or its best.safetensors; other weights can teach: `dgad train --teacher`",
        )
    tensors, metadata = read_safetensors(path, f"cannot read '{path}' as weights of `dgad train`")
    artifact = Artifact.from_mapping(metadata, str(path))
    if artifact is None:
        raise UserError(
            f"'{path}' carries no dgad metadata record, so its network is unknown",
            hint="use the best.safetensors of a run folder",
        )
    return tensors, artifact


def has_record(path: Path) -> bool:
    """Whether a file is safetensors with a record. False for a damaged file: its reader will say what is wrong."""
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def has_tensor(path: Path, name: str) -> bool:
    """Whether a file is safetensors with a tensor of this name. False for a damaged file, as `has_record`."""
    try:
        with safe_open(path, framework="pt") as file:
            return name in file.keys()  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError):
        return False


def load_model(
    path: Path,
    *,
    trust: bool = False,
    network: str | nn.Module | None = None,
    on_message: Callable[[str], None] = lambda line: None,
) -> tuple[nn.Module, Artifact]:
    """The network of a `save_weights` file, in eval mode on the CPU, and its record.

    Args:
        trust: run the source code that the record of a user's own network names.
        network: a user's own network, where its record does not find it: `path/to/file.py:build`, which is run, or the
            module, which takes over the weights.
        on_message: gets a line if the source of an own network has changed since.

    Raises:
        UserError: as `read_weights`, the tensors do not fit the network that the record names, or that is source code
            which is not there, has changed, or is not trusted.
    """
    tensors, artifact = read_weights(path)
    if tensors.pop(GRAPH, None) is not None and network is None:
        raise UserError(
            f"'{path}' is a network that was made from an ONNX graph, which this function does not open",
            hint="`exporters.formats.load` does; `dgad export` writes it as a file",
        )
    mean, std = artifact.normalize.get("mean", ()), artifact.normalize.get("std", ())
    if isinstance(network, nn.Module):
        name, model = type(network).__name__, normalised(network, mean, std)
    else:
        name = network or trusted_source(artifact.model, artifact.network, path, trust=trust)
        channels, classes = artifact.input_shape[0], len(artifact.classes)
        model = build_model(name, in_channels=channels, classes=classes, mean=mean, std=std)
        if note := changed_source(name, artifact.network):
            on_message(note)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        named = network is not None
        hint = "name the function that these weights were trained with" if named else "train or convert it again"
        raise UserError(f"'{path}': the weights do not fit a {name}: {reason_of(error)}", hint=hint) from None
    return model.eval(), artifact


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state that a run resumes from: tensors and plain values, so that reading it runs nothing."""
    content = BytesIO()
    torch.save({"format": STATE_FORMAT, **state}, content)
    with written_aside(path) as aside:
        aside.write_bytes(content.getbuffer())


def load_state(path: Path, keys: Collection[str] = ()) -> dict[str, Any]:
    """Read what `save_state` wrote; `keys` are those that it must have.

    Raises:
        UserError: missing, damaged, of another version, or with more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"nothing to resume: no such file '{path}'", hint="start the run without --resume")
    try:
        state = read_pickled(path, f"'{path}' is not a checkpoint that can be read safely")
    except UserError as error:
        raise UserError(error.message, hint="copy it again if it was copied; else start the run anew") from None
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT or not state.keys() >= set(keys):
        raise UserError(f"'{path}' is not a checkpoint of this version", hint="start the run anew")
    return state
