"""TorchScript files: a traced network and the metadata record. PyTorch calls the format deprecated; it still runs."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import torch
from torch import nn

from dgad_tk.artifacts.module_output import KEEPING, Last
from dgad_tk.artifacts.predictor import OpenShapeError, Predictor, predictor_of_module
from dgad_tk.artifacts.preprocessing import AS_IS, Interface
from dgad_tk.artifacts.record import Artifact
from dgad_tk.common import UserError, reason_of, sha256_file, written_aside
from exporters.torch_files.archive import EXTRA_FILE, read_archived_record


@contextmanager
def _deprecation_known() -> Iterator[None]:
    """Without the warnings that torch.jit gives at every call. `dgad export` says once that it is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..*deprecated.*")
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..*not supported in Python.*")
        yield


def save_torchscript(model: nn.Module, artifact: Artifact, path: Path) -> None:
    """Trace `model` (eval mode) at batch 2 and write it with its record."""
    example = torch.zeros(2, *artifact.input_shape)
    content = BytesIO()
    with _deprecation_known(), torch.no_grad():
        traced = torch.jit.trace(model.eval(), example)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, content, _extra_files={EXTRA_FILE: artifact.to_json()})
    with written_aside(path) as aside:
        aside.write_bytes(content.getbuffer())  # torch's own writer aborts the process when the disk is full


def load_torchscript(
    path: Path, input_shape: tuple[int, int, int] | None = None, interface: Interface = AS_IS
) -> Predictor:
    """Open a TorchScript file, which runs its author's code.

    Args:
        input_shape: (C, H, W), for a file without a metadata record.
        interface: what is done to images before such a file takes them.

    Raises:
        UserError: damaged, not a classifier, or of unknown input shape.
    """
    try:
        with _deprecation_known():
            module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"'{path}' is not a TorchScript file that can be read here: {reason_of(error)}",
            hint="it may be damaged, or made with operators or a version of PyTorch that are not here; export it again",
        ) from None
    artifact = read_archived_record(path)
    shape = artifact.input_shape if artifact else input_shape
    if shape is None:
        raise OpenShapeError(
            f"'{path}' carries no dgad metadata record, so the shape of its input is unknown",
            hint="name the images with --dataset",
        )
    return predictor_of_module(
        module,
        shape,
        format="torchscript",
        path=path,
        sha256=sha256_file(path),
        artifact=artifact,
        interface=interface,
        last=_last,
    )


def _last(module: nn.Module) -> Last:
    """The last operator of a TorchScript module that computes, in all of its methods and submodules written out."""
    assert isinstance(module, torch.jit.ScriptModule)
    try:
        with _deprecation_known():
            frozen = torch.jit.freeze(module.eval(), optimize_numerics=False)
    except RuntimeError:  # of a module that is frozen already, say: its answers have to tell
        return Last()
    graph = frozen.graph
    outputs = list(graph.outputs())
    node = outputs[0].node()
    while node.kind().removeprefix("aten::") in KEEPING and list(node.inputs()):
        node = next(node.inputs()).node()
    operator = node.kind().removeprefix("aten::").rstrip("_")
    if operator != "sigmoid" or len(outputs) != 1:
        return Last(operator)
    given = next(node.inputs())

    def before() -> nn.Module:
        graph.eraseOutput(0)
        graph.registerOutput(given)
        module: nn.Module = frozen
        return module

    return Last(operator, before)
