"""From an ONNX file whose source is lost to a network that trains: the twin of its graph, with parameters.

The constants that training learns are the file's. What else the graph holds (a normalisation of the images, a layout, a
Dropout that is switched off) stays as it was exported, so the student takes the images that the file takes.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn

from dgad_tk.artifacts.preprocessing import AS_IS
from dgad_tk.artifacts.record import Artifact
from dgad_tk.common import UserError
from exporters.onnx_open.open import load_onnx
from exporters.onnx_open.runtime_graph import precision_of
from exporters.onnx_read.read import read_onnx
from exporters.onnx_twin.trainable import count_learned, last_linear

Shape = tuple[int, int, int]
_ROUNDED = {"int8": "8-bit integers", "fp16": "float16"}


@dataclass(frozen=True)
class OnnxStudent:
    """A network that was made from an ONNX graph.

    Attributes:
        network: `(N, C, H, W)` in [0, 1] to logits `(N, K)`, on the CPU in eval mode, with parameters.
        input_shape: (C, H, W).
        classes: K.
        graph: the file with all its tensors inside, from which the same network can be made again.
        record: of a file that dgad wrote.
        learned, fixed: numbers that training changes, and other constants of floating point.
        notes: how the file was understood, a sentence each.
    """

    network: nn.Module
    input_shape: Shape
    classes: int
    graph: bytes
    record: Artifact | None
    learned: int
    fixed: int
    notes: tuple[str, ...]


def read_student(path: Path, input_shape: Shape | None = None) -> OnnxStudent:
    """Open an ONNX file as a student.

    Args:
        input_shape: (C, H, W) for a file that does not say.

    Raises:
        UserError: it cannot be read, is no image classifier in float32, or has no twin that can be trained.
    """
    proto = read_onnx(path)
    if (precision := precision_of(proto)) != "fp32":
        raise UserError(
            f"'{path}' computes in {_ROUNDED[precision]}: its weights are rounded, and training changes them by less "
            "than that",
            hint="train the float32 file that it was made from; `dgad export --format onnx-int8` rounds the result",
        )
    graph = proto.SerializeToString()
    found = load_onnx(path, input_shape, AS_IS, trainable=True)
    assert found.module is not None
    network = found.module.cpu().eval()
    learned, fixed = count_learned(network)
    if not learned:
        raise UserError(f"'{path}' has no constants that training learns", hint="give the weights of its network")
    notes = [each for each in found.notes if "ONNX Runtime is given" not in each and "searches ask" not in each]
    return OnnxStudent(network, found.input_shape, found.classes, graph, found.artifact, learned, fixed, tuple(notes))


def student_of_graph(graph: bytes, input_shape: Shape, classes: int) -> nn.Module:
    """The network that `read_student` made of the file that `graph` was, with a head for this number of classes.

    Raises:
        UserError: as `read_student`.
    """
    with tempfile.TemporaryDirectory(prefix="dgad-") as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(graph)
        found = read_student(path, input_shape)
    return found.network if found.classes == classes else with_head(found.network, classes, "its graph")


def with_head(network: nn.Module, classes: int, where: str) -> nn.Module:
    """A copy whose last linear layer gives so many logits, with weights that torch draws.

    Raises:
        UserError: it does not end in a linear layer.
    """
    found = copy.deepcopy(network)
    twin: Any = found if isinstance(found, fx.GraphModule) else getattr(found, "twin", None)
    name = last_linear(twin) if twin is not None else ""
    if not name:
        raise UserError(
            f"{where} knows another number of classes than the {classes} of the images, and does not end in a linear "
            "layer that could be replaced",
            hint="give images of its own classes",
        )
    before = twin.get_submodule(name)
    twin.set_submodule(name, nn.Linear(before.in_features, classes, before.bias is not None).eval())
    return found


def copies(network: nn.Module, classes: int | None, where: str) -> Callable[[], nn.Module]:
    """What makes the student anew for each call, with a head of its own if `classes` says a number."""
    if classes is None:
        return lambda: copy.deepcopy(network).train()
    return lambda: with_head(network, classes, where).train()
