"""What a model file is and takes, for whoever wants to run it and not to attack it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from dgad_tk.artifact import KEY, Artifact
from dgad_tk.common import UserError, sha256_file
from exporters import load
from exporters.complexity import Complexity, Shape, module_complexity, onnx_complexity
from exporters.external_data import external_files
from exporters.image_axes import lacks_batch_axis
from exporters.read_onnx import read_onnx
from exporters.runtime_errors import runtime_reason


@dataclass(frozen=True)
class Subject:
    """A model file.

    Attributes:
        sample: shape of one image as the file takes it, without the batch.
        dtype: of its input.
        fixed_batch: the only batch size that the file takes; None where it takes any.
        has_batch_axis: False where the file takes one image as it is, without an axis that counts images.
        bytes: on disk, external data included.
    """

    path: Path
    format: str
    sha256: str
    bytes: int
    sample: Shape
    dtype: str
    fixed_batch: int | None
    complexity: Complexity
    has_batch_axis: bool = True


def describe(path: Path, input_shape: tuple[int, int, int] | None = None) -> Subject:
    """What a file is and takes.

    Args:
        input_shape: (C, H, W) for a file that does not say.

    Raises:
        UserError: missing, of unknown suffix, damaged, or not with one image as its input.
    """
    if path.suffix != ".onnx" or not path.is_file():  # `load` has the words for a file that is not there
        predictor = load(path, input_shape)
        assert predictor.module is not None
        counts = module_complexity(predictor.module, predictor.input_shape)
        size = path.stat().st_size
        return Subject(path, predictor.format, predictor.sha256, size, predictor.input_shape, "float32", None, counts)
    proto = read_onnx(path)
    failed: UserError | None = None
    for found in _readings(path, proto, input_shape):
        sample, dtype, batch, has_batch_axis = found
        blank = np.zeros((batch or 1, *sample) if has_batch_axis else sample, dtype)
        try:
            counts = onnx_complexity(proto, blank, batch or 1)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
            failed = failed or UserError(
                f"ONNX Runtime cannot run '{path}' on an image of shape {sample}: {runtime_reason(error)}",
                hint="--image-size sets the size of an image folder; or export it again",
            )
            continue
        return Subject(
            path, "onnx", sha256_file(path), _stored_bytes(path), sample, dtype, batch, counts, has_batch_axis
        )
    assert failed is not None
    raise failed


Reading = tuple[Shape, str, int | None, bool]
"""Shape of one image, type, fixed batch size, and whether there is an axis for the batch."""


def _readings(path: Path, proto: onnx.ModelProto, given: tuple[int, int, int] | None) -> list[Reading]:
    """What a graph's input may be; more than one thing only where it says nothing of its axes.

    Raises:
        UserError: not one numeric input, of unknown shape or empty.
    """
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [entry for entry in proto.graph.input if entry.name not in stored]
    if len(inputs) != 1 or not inputs[0].type.HasField("tensor_type"):
        found = ", ".join(entry.name for entry in inputs) or "none"
        raise UserError(f"'{path}' is not an image classifier: its inputs are {found}", hint="expected one tensor")
    tensor = inputs[0].type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    record = {entry.key: entry.value for entry in proto.metadata_props if entry.key == KEY}
    artifact = Artifact.from_mapping(record, str(path))
    known = artifact.input_shape if artifact else given
    if not tensor.HasField("shape"):
        if known is None:
            raise UserError(
                f"'{path}' leaves its input's shape open, the number of its axes too",
                hint="name the images with --dataset",
            )
        samples = [known, (*known[1:], known[0]), (math.prod(known),)]
        return [(sample, str(dtype), None, True) for sample in samples]
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    if known is not None and lacks_batch_axis(sizes, known):
        alone = _filled(sizes, known) or (math.prod(known),)
        return [(alone, str(dtype), 1, False)]
    if len(sizes) < 2 or dtype.kind not in "fiu":
        raise UserError(
            f"'{path}' is not an image classifier: it takes {dtype} of shape {sizes}",
            hint="expected images (N, C, H, W); if the axis for the batch is missing, name the images with --dataset",
        )
    declared = _filled(sizes[1:], known)
    if declared is None:
        raise UserError(f"'{path}' leaves its input's shape open: {sizes}", hint="name the images with --dataset")
    if 0 in (*declared, sizes[0]):
        raise UserError(f"'{path}' takes no image: its input has the shape {sizes}", hint="export it again")
    return [(declared, str(dtype), sizes[0], True)]


def _filled(sizes: Sequence[int | None], known: tuple[int, int, int] | None) -> Shape | None:
    """`sizes` with what they leave open taken from an image (C, H, W), as that or as (H, W, C)."""
    if None not in sizes:
        return tuple(size for size in sizes if size is not None)
    for shape in [known, (*known[1:], known[0])] if known else []:
        if len(shape) == len(sizes) and all(size in (None, own) for size, own in zip(sizes, shape, strict=True)):
            return shape
    return None


def _stored_bytes(path: Path) -> int:
    """Size on disk, with the files that hold a graph's tensors."""
    files = external_files(onnx.load(str(path), load_external_data=False), path)
    return sum(file.stat().st_size for file in {path.resolve(), *files})
