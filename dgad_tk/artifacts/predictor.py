"""What the evaluator attacks: images to logits by the deployed runtime, and gradients where there are any."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dgad_tk.artifacts.preprocessing import AS_IS, Interface
from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.weights import load_model
from dgad_tk.ascent.folded import Folded
from dgad_tk.common import UserError, sha256_file

Images = NDArray[np.float32]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Predictor:
    """An opened model file.

    Attributes:
        predict: float32 images `(N, C, H, W)` in [0, 1] to float32 logits `(N, K)`, by the runtime that is deployed.
            This is the judge: an adversarial example counts when these logits are wrong. A file that answers with
            probabilities gives their logarithms, the same up to a constant per image, with the same first largest one.
        module: a differentiable torch module of the same function, in eval mode, as a search goes through it: with
            BatchNorm folded and frozen. None for a black box.
        input_shape: (C, H, W).
        classes: K.
        format: row of the EXPORTERS table, or "safetensors".
        path: the file it came from.
        sha256: of that file.
        artifact: the file's metadata record, where it carries one.
        runtime: what `predict` runs on, for the results ("onnxruntime 1.31.1 CPUExecutionProvider").
        finish: logits `(N, K)` of `module` to what `predict` gives, for a file with a final Softmax: gradients come
            from what stands before it. None where both are the same.
        answer_error: by how much a probability that `predict` takes the logarithm of may be off, whatever its size.
        interface: what is done to images before the file takes them; `predict` and `module` both do it.
        notes: what a reader of the results should know about how this file is run: one sentence each.
        batch: how many images the runtime is given at a time, where a file demands that; None for any number.
        precision: what the file computes in, and so how near `module` can be to `predict`.
        logit_step: the quantisation step of the logits, 0 where they are not quantised themselves.
        network: the torch module that the file holds and `predict` runs; None where another runtime than torch does.
    """

    predict: Callable[[Images], Logits] = field(repr=False)
    module: nn.Module | None = field(repr=False)
    input_shape: tuple[int, int, int]
    classes: int
    format: str
    path: Path | None = None
    sha256: str = ""
    artifact: Artifact | None = field(default=None, repr=False)
    runtime: str = "torch"
    finish: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    answer_error: float = 0.0
    interface: Interface = AS_IS
    notes: tuple[str, ...] = ()
    batch: int | None = None
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    logit_step: float = 0.0
    network: nn.Module | None = field(default=None, repr=False)


def predictor_of_module(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    format: str,
    path: Path | None = None,
    sha256: str = "",
    artifact: Artifact | None = None,
    interface: Interface = AS_IS,
) -> Predictor:
    """Wrap `module`, put into eval mode and frozen, on the GPU where there is one.

    Raises:
        UserError: it does not map `(N, C, H, W)` to `(N, K)`, or `interface` says what does not apply to it.
    """
    where = str(path or "the module")
    interface.check_record(artifact, where)
    if interface.layout or interface.logits_output:
        raise UserError(
            f"'{where}' is no ONNX file: it takes (N, C, H, W) and has one output",
            hint="leave out --layout and --logits-output for it",
        )
    if interface.changes_values:
        module = nn.Sequential(interface.preprocessing(input_shape[0]), module)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = module.eval().to(device)
    for parameter in module.parameters():  # TorchScript modules have no requires_grad_
        parameter.requires_grad_(False)

    def predict(images: Images) -> Logits:
        with torch.no_grad():
            logits = module(torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).to(device))
        result: Logits = logits.float().cpu().numpy()
        return result

    classes = probe_classes(predict, input_shape, where)
    check_classes(classes, artifact, where)
    return Predictor(
        predict,
        Folded(module),
        input_shape,
        classes,
        format,
        path,
        sha256,
        artifact,
        runtime=f"torch {torch.__version__} {device.type}",
        interface=interface,
        notes=(interface.note,) if interface.note else (),
        network=module,
    )


def probe_classes(predict: Callable[[Images], Logits], input_shape: tuple[int, int, int], where: str) -> int:
    """How many logits the model gives for two blank images.

    Raises:
        UserError: it fails on them, or does not return `(2, K)` with K >= 2.
    """
    try:
        logits = np.asarray(predict(np.zeros((2, *input_shape), dtype=np.float32)))
    except UserError:  # it knows more of the file
        raise
    except Exception as error:  # noqa: BLE001 - whatever a foreign model raises, it cannot be used
        reason = " ".join(str(error).split())[-200:]  # of a TorchScript error, the end says what happened
        raise UserError(
            f"'{where}' does not run on images of shape {input_shape}: {reason}",
            hint="is it an image classifier with input (N, C, H, W)?",
        ) from None
    if logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
        raise UserError(
            f"'{where}' is not a classifier: expected logits of shape (2, K) for two images, got {logits.shape}",
            hint="a classifier gives one row of K >= 2 numbers per image",
        )
    return int(logits.shape[1])


def check_classes(classes: int, artifact: Artifact | None, where: str) -> None:
    """Raises:
    UserError: the record names another number of classes than the model has.
    """
    if artifact is not None and classes != len(artifact.classes):
        raise UserError(
            f"'{where}' gives {classes} logits, its metadata record names {len(artifact.classes)} classes",
            hint="export it again",
        )


def load_safetensors(
    path: Path, input_shape: tuple[int, int, int] | None = None, interface: Interface = AS_IS
) -> Predictor:
    """Open weights that `dgad train` wrote. `input_shape` is not needed: the record says it.

    Raises:
        UserError: as `dgad_tk.artifacts.weights.load_model`, or an `interface` that contradicts the record.
    """
    model, artifact = load_model(path)
    return predictor_of_module(
        model,
        artifact.input_shape,
        format="safetensors",
        path=path,
        sha256=sha256_file(path),
        artifact=artifact,
        interface=interface,
    )
