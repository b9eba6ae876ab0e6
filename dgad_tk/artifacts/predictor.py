"""An opened model file: logits from the deployed runtime, and a torch module with gradients where there is one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dgad_tk.artifacts.module_output import Last, read_module, trial_images
from dgad_tk.artifacts.one_number import SIGMOID_ERROR
from dgad_tk.artifacts.preprocessing import AS_IS, Interface
from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.weights import load_model
from dgad_tk.ascent.folded import Folded
from dgad_tk.common import UserError, sha256_file

Images = NDArray[np.float32]
Logits = NDArray[np.float32]


PartlyKnown = tuple[int | None, int | None, int | None]
"""(C, H, W) as far as it is known."""


class OpenShapeError(UserError):
    """A file does not say the whole shape of its images; it can be opened once that is known.

    Attributes:
        declared: what it says of (C, H, W).
        values: numbers in an image, for a file that takes flat ones; None if it does not say.
        usual: (H, W) that its metadata give; None if they do not.
    """

    usual: tuple[int, int] | None = None

    def __init__(
        self, message: str, hint: str = "", *, declared: PartlyKnown = (None, None, None), values: int | None = None
    ) -> None:
        super().__init__(message, hint)
        self.declared, self.values = declared, values


@dataclass(frozen=True)
class Predictor:
    """An opened model file.

    Attributes:
        predict: maps float32 images `(N, C, H, W)` in [0, 1] to float32 logits `(N, K)` by the deployed runtime. This
            is the judge: an adversarial example counts when these logits are wrong. For a file that answers with
            probabilities they are the logarithms, which differ from logits by a constant per image.
        module: a torch module of the same function for gradients, frozen, in eval mode, with BatchNorm folded. None
            for a black box.
        input_shape: (C, H, W).
        classes: K.
        format: row of the EXPORTERS table, or "safetensors".
        path: the file it came from.
        sha256: of that file.
        artifact: the file's metadata record, where it carries one.
        runtime: what `predict` runs on, for the results ("onnxruntime 1.31.1 CPUExecutionProvider").
        finish: maps the logits of `module` to those of `predict` for a file with a final Softmax, since gradients
            come from before the Softmax. None where both are the same.
        answer_error: absolute error of the probabilities whose logarithms `predict` returns.
        interface: how images are changed before the file takes them; `predict` and `module` both do it.
        notes: sentences for the results about how this file is run.
        batch: number of images that the file takes at a time; None for any number.
        precision: what the file computes in, and so how near `module` can be to `predict`.
        logit_step: the quantisation step of the logits; 0 where they are not quantised.
        network: the torch module that the file holds and `predict` runs; None for another runtime.
        one_number: the file gives one number per image, which is read as two classes.
        search: the same as `predict` up to rounding, for the many queries of a search, where `predict` is slow: the
            graph of a file of fixed batch size, with its batch freed. It gives no verdict. None where `predict` serves.
        names: of the classes in the order of the logits, as the metadata of a foreign file have them; else empty.
        siblings: models of the same classes by name, such as the fp32 file of an INT8 one, which a search may climb on.
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
    one_number: bool = False
    search: Callable[[Images], Logits] | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()
    siblings: Mapping[str, "Predictor"] = field(default_factory=dict, repr=False)


def predictor_of_module(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    format: str,
    path: Path | None = None,
    sha256: str = "",
    artifact: Artifact | None = None,
    interface: Interface = AS_IS,
    last: Callable[[nn.Module], Last] = lambda module: Last(),
) -> Predictor:
    """Wrap `module`, which is put into eval mode, frozen, and moved to the GPU where there is one.

    One number per image is read as two classes: it is a probability if the module ends in a Sigmoid, a logit if it ends
    in a linear operator, and otherwise what its answers to noise look like.

    Args:
        last: tells the last operator of the module, once it is in its place.

    Raises:
        UserError: it does not map `(N, C, H, W)` to `(N, K)`, or `interface` does not apply to it.
    """
    where = str(path or "the module")
    interface.check_unneeded(artifact, where)
    if interface.layout or interface.logits_output:
        raise UserError(
            f"'{where}' is no ONNX file: it takes (N, C, H, W) and has one output",
            hint="leave out --layout and --logits-output for it",
        )
    before = interface.preprocessing(input_shape[0])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = module.eval().to(device)
    for parameter in module.parameters():  # TorchScript modules have no requires_grad_
        parameter.requires_grad_(False)

    def wrapped(net: nn.Module) -> nn.Module:
        return nn.Sequential(before, net).eval().to(device) if interface.changes_images else net

    trials = trial_images(input_shape).to(device)
    try:
        read = read_module(module, wrapped, trials, lambda: last(module))
    except Exception as error:  # noqa: BLE001 - a foreign model may raise anything
        raise _does_not_run(where, input_shape, error) from None

    def predict(images: Images) -> Logits:
        with torch.no_grad():
            logits = read.judged(torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).to(device))
        result: Logits = logits.float().cpu().numpy()
        return result

    classes = count_classes(predict, input_shape, artifact, where)
    return Predictor(
        predict,
        Folded(read.searched),
        input_shape,
        classes,
        format,
        path,
        sha256,
        artifact,
        runtime=f"torch {torch.__version__} {device.type}",
        finish=read.finish,
        answer_error=SIGMOID_ERROR if read.finish else 0.0,
        interface=interface,
        notes=(*((interface.note,) if interface.note else ()), *read.notes),
        network=read.judged,
        one_number=read.one_number,
    )


def count_classes(
    predict: Callable[[Images], Logits], input_shape: tuple[int, int, int], artifact: Artifact | None, where: str
) -> int:
    """The number of logits that a model gives for each of two black images.

    Raises:
        UserError: it fails on them, does not return `(2, K)` with K >= 2, or its record names another K.
    """
    try:
        logits = np.asarray(predict(np.zeros((2, *input_shape), dtype=np.float32)))
    except UserError:  # already says what is wrong
        raise
    except Exception as error:  # noqa: BLE001 - a foreign model may raise anything
        raise _does_not_run(where, input_shape, error) from None
    if logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
        raise UserError(
            f"'{where}' is not a classifier: expected logits of shape (2, K) for two images, got {logits.shape}",
            hint="a classifier gives one row of K >= 2 numbers per image",
        )
    classes = int(logits.shape[1])
    if artifact is not None and classes != len(artifact.classes):
        raise UserError(
            f"'{where}' gives {classes} logits, its metadata record names {len(artifact.classes)} classes",
            hint="export it again",
        )
    return classes


def _does_not_run(where: str, input_shape: tuple[int, int, int], error: Exception) -> UserError:
    reason = " ".join(str(error).split())[-200:]  # the end of a TorchScript error says what happened
    return UserError(
        f"'{where}' does not run on images of shape {input_shape}: {reason}",
        hint="is it an image classifier with input (N, C, H, W)?",
    )


def load_safetensors(
    path: Path,
    input_shape: tuple[int, int, int] | None = None,
    interface: Interface = AS_IS,
    *,
    trust: bool = False,
) -> Predictor:
    """Open weights that `dgad train` wrote. `input_shape` is ignored, since the record holds it.

    Args:
        trust: run the source code that the record of a user's own network names.
    """
    notes: list[str] = []
    model, artifact = load_model(path, trust=trust, on_message=notes.append)
    found = predictor_of_module(
        model,
        artifact.input_shape,
        format="safetensors",
        path=path,
        sha256=sha256_file(path),
        artifact=artifact,
        interface=interface,
    )
    return replace(found, notes=(*found.notes, *notes))
