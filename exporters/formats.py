"""Model files, out and in. A new format is a file with save and load, and a row in EXPORTERS."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.artifacts.preprocessing import AS_IS, Interface
from dgad_tk.artifacts.record import Artifact
from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.artifacts.weights import read_weights
from dgad_tk.common import UserError
from exporters.onnx_open.open import load_onnx
from exporters.onnx_read.read import read_onnx_record
from exporters.onnx_student.weights import load_weights
from exporters.onnx_write.float16 import save_onnx_fp16
from exporters.onnx_write.float32 import Report, save_onnx
from exporters.onnx_write.int8 import save_onnx_int8
from exporters.parity.divergence import Layers, onnx_layers, program_layers, script_layers
from exporters.parity.verify import EXACT, HALF, QUANTISED, Tolerance
from exporters.torch_files.archive import PROGRAMS, check_program, read_archived_record
from exporters.torch_files.torch_export import load_torch_export, save_torch_export
from exporters.torch_files.torchscript import load_torchscript, save_torchscript

Load = Callable[[Path, tuple[int, int, int] | None, Interface], Predictor]


@dataclass(frozen=True)
class Format:
    """A way to write a model.

    Attributes:
        filename: default name of its files; the last suffix says how they are opened.
        save: (model in eval mode, record, path, **options); returns what there is to report, or None.
        record: reads the record in a file of this format without running anything; None if there is none.
        tolerance: how far its files may be from their source.
        layers: runs its files layer by layer, to find the one that fails.
        options: names of the options that `save` takes. `export` itself gives `probes`, what exports are compared on.
        note: printed when a file is written.
        not_judged: what a comparison on a CPU does not show.
    """

    filename: str
    save: Callable[..., Report | None]
    record: Callable[[Path], Artifact | None]
    tolerance: Tolerance
    layers: Layers
    options: tuple[str, ...] = ()
    note: str = ""
    not_judged: str = ""

    @property
    def suffix(self) -> str:
        return Path(self.filename).suffix


EXPORTERS: dict[str, Format] = {
    "onnx": Format("student.onnx", save_onnx, read_onnx_record, EXACT, onnx_layers, ("opset",)),
    "onnx-fp16": Format(
        "student.fp16.onnx",
        save_onnx_fp16,
        read_onnx_record,
        HALF,
        onnx_layers,
        ("opset", "probes"),
        note="half the size; a CPU computes float16 in float32, so that only GPUs and NPUs gain speed",
        not_judged="arithmetic in float16, which this CPU does in float32: weights and the range of values were judged",
    ),
    "onnx-int8": Format(
        "student.int8.onnx",
        save_onnx_int8,
        read_onnx_record,
        QUANTISED,
        onnx_layers,
        ("opset", "images", "int8"),
        note="answers differ from the source's on some images; `dgad attack` says what that costs",
    ),
    "torchscript": Format(
        "student.pt",
        save_torchscript,
        read_archived_record,
        EXACT,
        script_layers,
        note="PyTorch calls TorchScript deprecated; prefer onnx or torch-export for new deployments",
    ),
    "torch-export": Format("student.pt2", save_torch_export, read_archived_record, EXACT, program_layers),
}

LOADERS: dict[str, Load] = {
    ".onnx": load_onnx,
    ".pt": load_torchscript,
    ".pt2": load_torch_export,
    ".safetensors": load_weights,
}

WITHOUT_GRADIENTS: dict[str, Load] = {".onnx": partial(load_onnx, gradients=False)}
"""Loaders of formats whose gradients take time to make."""


def load(
    path: Path,
    input_shape: tuple[int, int, int] | None = None,
    interface: Interface = AS_IS,
    *,
    trust: bool = False,
    gradients: bool = True,
) -> Predictor:
    """Open a model file by its suffix.

    Args:
        input_shape: (C, H, W) for a file that does not say.
        interface: what is done to images before a file from elsewhere takes them.
        trust: open a file that is a program, `.pt` or `.pt2`, which can run any code of its author; or weights whose
            record names source code, which is then run.
        gradients: False for who needs answers only: where gradients cost time, the file is opened without.

    Raises:
        UserError: missing, of unknown suffix, damaged, not an image classifier, or a program without `trust`.
    """
    _check_path(path)
    if path.suffix in PROGRAMS:
        check_program(path, trust=trust)
    if LOADERS[path.suffix] is load_weights:
        return load_weights(path, input_shape, interface, trust=trust)
    loaders = LOADERS if gradients else LOADERS | WITHOUT_GRADIENTS
    return loaders[path.suffix](path, input_shape, interface)


def read_record(path: Path) -> Artifact | None:
    """The metadata record in a model file, read without running anything; None if there is none.

    Raises:
        UserError: missing, of unknown suffix or damaged.
    """
    _check_path(path)
    formats = {each.suffix: each for each in EXPORTERS.values()}
    return formats[path.suffix].record(path) if path.suffix in formats else read_weights(path)[1]


def _check_path(path: Path) -> None:
    if not path.exists():
        raise UserError(f"no such file: '{path}'", hint="`dgad export` writes student.onnx into the current folder")
    if not path.is_file():
        run = RunFolder(path)
        hint = f"its weights are '{run.best}'; `dgad export` makes a file of it" if run.best.is_file() else ""
        raise UserError(f"'{path}' is not a file", hint=hint or "name the model file itself")
    if path.suffix not in LOADERS:
        raise UserError(
            f"cannot tell what '{path}' is by its suffix '{path.suffix}'",
            hint="expected one of " + ", ".join(sorted(LOADERS)),
        )
