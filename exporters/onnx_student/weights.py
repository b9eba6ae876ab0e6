"""Weights of `dgad train`, opened whatever their network was made from: a name, or an ONNX graph beside them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from dgad_tk.artifacts.predictor import Predictor, load_safetensors, predictor_of_module
from dgad_tk.artifacts.preprocessing import AS_IS, Interface
from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.weights import GRAPH, has_tensor, load_model, read_weights
from dgad_tk.common import sha256_file
from exporters.onnx_student.student import Shape, student_of_graph


def has_graph(path: Path) -> bool:
    """Whether a file is safetensors with an ONNX graph in it."""
    return path.suffix == ".safetensors" and path.is_file() and has_tensor(path, GRAPH)


def open_weights(
    path: Path,
    *,
    trust: bool = False,
    network: str | nn.Module | None = None,
    on_message: Callable[[str], None] = lambda line: None,
) -> tuple[nn.Module, Artifact]:
    """The network of weights that `dgad train` wrote, and its record. Arguments and errors: `load_model`."""
    if network is None and has_graph(path):
        tensors, artifact = read_weights(path)
        graph = bytes(tensors[GRAPH].numpy().tobytes())
        network = student_of_graph(graph, artifact.input_shape, len(artifact.classes))
    return load_model(path, trust=trust, network=network, on_message=on_message)


def load_weights(
    path: Path, input_shape: Shape | None = None, interface: Interface = AS_IS, *, trust: bool = False
) -> Predictor:
    """Open weights that `dgad train` wrote. `input_shape` is ignored, since the record holds it.

    Args:
        trust: run the source code that the record of a user's own network names.
    """
    if not has_graph(path):
        return load_safetensors(path, input_shape, interface, trust=trust)
    model, artifact = open_weights(path)
    about = {"path": path, "sha256": sha256_file(path), "artifact": artifact}
    found = predictor_of_module(model, artifact.input_shape, format="safetensors", interface=interface, **about)  # type: ignore[arg-type]
    return replace(found, notes=(*found.notes, f"its network was made from an ONNX graph, {artifact.model}"))
