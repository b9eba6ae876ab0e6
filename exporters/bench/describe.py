"""What a model file is and takes, for running it without attacking it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from dgad_tk.artifacts.preprocessing import AS_IS, Interface
from dgad_tk.common import sha256_file
from exporters.bench.complexity import Complexity, Sizes, module_complexity, onnx_complexity
from exporters.formats import load
from exporters.onnx_open.image_axes import image_inputs
from exporters.onnx_open.image_input import Shape
from exporters.onnx_open.session import open_session, tried
from exporters.onnx_read.external_data import external_files
from exporters.onnx_read.read import read_onnx, record_of


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
    sample: Sizes
    dtype: str
    fixed_batch: int | None
    complexity: Complexity
    has_batch_axis: bool = True


def describe(
    path: Path, input_shape: Shape | None = None, interface: Interface = AS_IS, *, trust: bool = False
) -> Subject:
    """What a file is and takes.

    Args:
        input_shape: (C, H, W) for a file that does not say.
        interface: the layout of an ONNX file whose shapes do not tell it.
        trust: open a file that is a program (.pt, .pt2).

    Raises:
        UserError: missing, of unknown suffix, damaged, or not with one image as its input.
    """
    if path.suffix != ".onnx" or not path.is_file():  # `load` has the words for a file that is not there
        predictor = load(path, input_shape, trust=trust)
        assert predictor.network is not None
        counts = module_complexity(predictor.network, predictor.input_shape)
        size, shape = path.stat().st_size, predictor.input_shape
        return Subject(path, predictor.format, predictor.sha256, size, shape, "float32", predictor.batch, counts)
    where = str(path)
    proto = read_onnx(path)
    artifact = record_of(proto, path)
    session = open_session(path)
    inputs = session.get_inputs()
    if artifact is not None:
        input_shape, interface = artifact.input_shape, replace(interface, layout="nchw")
    elif input_shape is None and len(inputs) == 1:
        input_shape = _flat_images(inputs[0].shape)
    image = tried(session, image_inputs(inputs, proto, input_shape, interface, where), where)[0].image
    batch = image.feed().array(np.zeros((image.batch or 1, *image.shape), np.float32))
    counts = onnx_complexity(proto, batch if image.has_batch_axis else batch[0], len(batch))
    sample, dtype = batch.shape[1:], str(batch.dtype)
    files = {path.resolve(), *external_files(onnx.load(str(path), load_external_data=False), path)}
    size = sum(file.stat().st_size for file in files)
    return Subject(path, "onnx", sha256_file(path), size, sample, dtype, image.batch, counts, image.has_batch_axis)


def _flat_images(sizes: Sequence[object]) -> Shape | None:
    """(1, 1, pixels) for a flat input, which is timed on noise; None for an image, or if a size is open."""
    numbers = [size for size in sizes[1:] if isinstance(size, int)]
    if len(sizes) in (0, 1, 4) or len(numbers) < len(sizes) - 1:
        return None
    return 1, 1, math.prod(numbers)
